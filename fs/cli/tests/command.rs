//! The built command, against registries on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use spanfs_registry::{Auth, Bearer, Credentials, Fault, Faults, Nth, Registry, Rule};

const REPOSITORY: &str = "team/app";

/// A cache, a runtime directory and a place to mount at, gone afterwards.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("place")).unwrap();
        Self { directory }
    }

    fn place(&self) -> PathBuf {
        self.directory.path().join("place")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spanfs"));
        command
            .args(arguments)
            .env("SPANFS_CACHE_DIR", self.directory.path().join("cache"))
            .env("HOME", self.directory.path())
            .env_remove("SPANFS_USERNAME")
            .env_remove("SPANFS_PASSWORD")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

fn layout(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/images").join(name)
}

fn registry(name: &str) -> (Registry, String) {
    let registry = Registry::builder().start().unwrap();
    let found = registry.put_image(REPOSITORY, &layout(name)).unwrap();
    registry.tag(REPOSITORY, "v1", found[0].1).unwrap();
    let reference = registry.reference(REPOSITORY, "v1");
    (registry, reference)
}

/// The exit code is right, and stderr says why.
fn check_failure(output: &Output, code: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{says:?} expected in {stderr}");
}

fn success(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Mounts need FUSE; whoever has none is told.
fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists();
    if !can {
        assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "/dev/fuse is needed");
        eprintln!("skipped: no /dev/fuse");
    }
    can
}

#[test]
fn cat_and_inspect_of_a_registry_and_a_layout() {
    let bench = Bench::new();
    let (_registry, remote) = registry("v2");
    let local = format!("oci:{}", layout("v2").display());
    let ready = bench.run(&["cat", &remote, "/bin/ready"]);
    assert!(ready.status.success() && ready.stdout.starts_with(b"\x7fELF"));
    assert!(bench.run(&["cat", &local, "bin/../bin/ready"]).stdout == ready.stdout);
    let report = success(&bench.run(&["--json", "inspect", &remote]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["soci_index"]["found_by"], "annotation");
    let layer = report["layers"][0]["digest"].as_str().unwrap();
    let ztoc = success(&bench.run(&["--json", "inspect", &local, "--layer", layer, "--spans"]));
    let ztoc: serde_json::Value = serde_json::from_str(&ztoc).unwrap();
    assert_eq!(ztoc["spans"].as_array().unwrap().len() as u64, ztoc["span_count"]);
    check_failure(&bench.run(&["cat", &remote, "/no/such"]), 3, "no such file");
    check_failure(&bench.run(&["cat", &remote, "/bin"]), 1, "no regular file");
}

#[test]
fn an_indexed_image_is_found_to_be_so_again() {
    let bench = Bench::new();
    let plain = format!("oci:{}", layout("plain").display());
    let target = format!("oci:{}:x", bench.directory.path().join("out").display());
    let built = bench.run(&["--json", "index", &plain, "--min-layer-size", "0", "-o", &target]);
    let built: serde_json::Value = serde_json::from_str(&success(&built)).unwrap();
    let report = success(&bench.run(&["--json", "inspect", &target]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["soci_index"]["digest"], built["images"][0]["index"]);
    assert!(report["layers"].as_array().unwrap().iter().all(|it| it["ztoc"]["size"].is_u64()));
    let ready = bench.run(&["cat", &target, "/bin/ready"]);
    assert!(ready.stdout == bench.run(&["cat", &plain, "/bin/ready"]).stdout);
    let (registry, remote) = registry("plain");
    success(&bench.run(&["index", &remote, "--min-layer-size", "0", "--format", "v1"]));
    let report = success(&bench.run(&["--json", "inspect", &remote]));
    assert!(report.contains("referrers"), "{report}");
    registry.set_referrers(false);
    assert!(success(&bench.run(&["inspect", &remote])).contains("none"), "no fall-back tag");
}

#[test]
fn a_mount_shows_the_image_until_it_is_taken_away() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (_registry, remote) = registry("v2");
    let place = bench.place();
    let place_text = place.to_str().unwrap();
    success(&bench.run(&["mount", &remote, place_text]));
    let ready = fs::read(place.join("bin/ready")).unwrap();
    let status = success(&bench.run(&["--json", "status", place_text]));
    let again = bench.run(&["mount", &remote, place_text]);
    success(&bench.run(&["umount", place_text]));
    assert!(ready == bench.run(&["cat", &remote, "/bin/ready"]).stdout);
    assert!(status.contains("\"verification\""), "{status}");
    check_failure(&again, 1, "not empty");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    check_failure(&bench.run(&["umount", place_text]), 3, "nothing there");
}

#[test]
fn ctrl_c_takes_a_foreground_mount_away() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (_registry, remote) = registry("v2");
    let place = bench.place();
    let mount = bench.command(&["mount", "--foreground", &remote, place.to_str().unwrap()]).spawn();
    let mut mount = mount.unwrap();
    wait_until(&mut mount, || place.join("bin/ready").exists());
    let pid = rustix::process::Pid::from_child(&mount);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(mount.wait().unwrap().success());
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
}

fn wait_until(child: &mut Child, mut there: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !there() {
        assert!(child.try_wait().unwrap().is_none(), "the mount process ended");
        if Instant::now() > until {
            drop(child.kill());
            panic!("not mounted within 30 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn programs_run_and_their_exit_code_passes() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (_registry, remote) = registry("v2");
    assert!(success(&bench.run(&["run", &remote])).contains("ready"));
    let missing = bench.run(&["run", &remote, "--", "/no/such/program"]);
    check_failure(&missing, 127, "starting /no/such/program");
}

#[test]
fn refusals() {
    let bench = Bench::new();
    let place = bench.place();
    let place = place.to_str().unwrap();
    check_failure(&bench.run(&["mount"]), 2, "Usage");
    check_failure(&bench.run(&["mount", "UPPER", place]), 2, "because");
    check_failure(&bench.run(&["mount", "a", place, "--memory-limit", "1"]), 2, "32M");
    check_failure(&bench.run(&["mount", "a", "/no/such/directory"]), 3, "mkdir");
    let (registry, remote) = registry("v2");
    let missing = remote.replace(":v1", ":v9");
    check_failure(&bench.run(&["inspect", &missing]), 3, "not found");
    let platform = bench.run(&["inspect", &remote, "--platform", "linux/s390x"]);
    check_failure(&platform, 3, "linux/s390x");
    registry.set_faults(Faults::script([Rule::get("/manifests/", Nth::Every, Fault::Status(403))]));
    check_failure(&bench.run(&["inspect", &remote]), 4, "403");
    drop(registry);
    check_failure(&bench.run(&["inspect", &remote]), 1, "reached");
}

#[test]
fn credentials_come_from_the_environment() {
    let bearer = Bearer::new(Credentials::new("u", "p"));
    let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().unwrap();
    let found = registry.put_image(REPOSITORY, &layout("v2")).unwrap();
    registry.tag(REPOSITORY, "v1", found[0].1).unwrap();
    let remote = registry.reference(REPOSITORY, "v1");
    let bench = Bench::new();
    check_failure(&bench.run(&["inspect", &remote]), 4, "SPANFS_USERNAME");
    let mut command = bench.command(&["inspect", &remote]);
    success(&command.env("SPANFS_USERNAME", "u").env("SPANFS_PASSWORD", "p").output().unwrap());
}

#[test]
fn help_pages_and_completions_know_every_command() {
    let bench = Bench::new();
    let help = success(&bench.run(&["--help"]));
    let commands = help.split_once("Commands:").unwrap().1.split_once("Options:").unwrap().0;
    let commands: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for code in
        ["0  done", "1  failed", "2  the command", "3  not found", "4  refused", "5  corrupt"]
    {
        assert!(help.contains(code), "{code}");
    }
    let pages = bench.directory.path().join("man");
    success(&bench.run(&["man", pages.to_str().unwrap()]));
    for command in &commands {
        let page = fs::read_to_string(pages.join(format!("spanfs-{command}.1"))).unwrap();
        assert!(page.contains("SYNOPSIS"), "{command}: {page}");
        assert!(success(&bench.run(&[command, "--help"])).contains("Usage:"), "{command}");
    }
    assert!(pages.join("spanfs-trace-export.1").exists());
    assert!(success(&bench.run(&["man"])).contains("Exit codes"));
    for shell in ["bash", "zsh", "fish"] {
        let text = success(&bench.run(&["completions", shell]));
        commands.iter().for_each(|command| assert!(text.contains(command), "{shell}: {command}"));
    }
    check_failure(&bench.run(&["nonsense"]), 2, "nonsense");
    check_failure(&bench.run(&["mount", "a", "b", "--nonsense"]), 2, "--nonsense");
    check_failure(&bench.run(&["status", "--log", "a=b=c"]), 2, "--log");
}
