//! `spanfs demo`, as the README shows it: what it says, and what is left of it, which is nothing.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::peers::{DockerRegistry, Guarded, able, fixture, run, skopeo_copy, spanfs};
use crate::scratch::{Scratch, SmallDisk};

const PATIENCE: Duration = Duration::from_secs(120);

/// `spanfs demo` with all its temporary things in one place.
fn demo(scratch: &Scratch, arguments: &[&str]) -> (Command, PathBuf) {
    let tmp = scratch.path("tmp");
    fs::create_dir_all(&tmp).expect("directory");
    let mut command = scratch.spanfs();
    command.arg("demo").args(arguments).env("TMPDIR", &tmp).stdin(Stdio::null());
    (command, tmp)
}

/// The same without `spanfs-hold` beside it, as `cargo run` has it.
fn alone(scratch: &Scratch, command: &Command) -> Command {
    let program = scratch.path("spanfs");
    fs::copy(spanfs(), &program).expect("copy");
    let mut alone = Command::new(program);
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    alone.args(command.get_args()).envs(set).stdin(Stdio::null());
    alone
}

/// No file, no mount, no process.
fn assert_nothing_left(tmp: &Path, when: &str) {
    let left: Vec<_> = fs::read_dir(tmp).expect("directory").map(|it| it.expect("entry")).collect();
    assert!(left.is_empty(), "{when}: {left:?} stays");
    let place = tmp.to_str().expect("text");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(place), "{when}: a mount stays: {mounts}");
    let end = Instant::now() + Duration::from_secs(10);
    while let Some(process) = process_at(place) {
        assert!(Instant::now() < end, "{when}: a process stays: {process}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process that was told of a path.
fn process_at(place: &str) -> Option<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut told = processes.filter_map(|it| fs::read_to_string(it.path().join("cmdline")).ok());
    told.find(|told| told.contains("spanfs") && told.contains(place))
}

#[test]
fn demo_of_this_machine_compares_and_checks_every_file() {
    if !able(&["python3"], true) {
        return;
    }
    let scratch = Scratch::new();
    let (command, tmp) = demo(&scratch, &["--size", "20M", "--link", "lan", "--json"]);
    let output = alone(&scratch, &command).output().expect("spanfs starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("WARN"), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for side in ["download_and_unpack", "mount"] {
        assert!(report[side]["first_output_seconds"].as_f64() > Some(0.0), "{report}");
        assert!(report[side]["output"].as_str().is_some_and(|it| it.contains("hello")), "{report}");
    }
    assert!(report["checked"].as_u64() > Some(100), "{report}");
    assert!(report["image_bytes"].as_u64() > Some(1 << 20), "{report}");
    assert_nothing_left(&tmp, "after the demo");
}

#[test]
fn demo_of_a_real_image_starts_its_program_both_ways() {
    if !able(&["docker-registry", "skopeo"], true) {
        return;
    }
    let registry = DockerRegistry::start(&Guarded::default());
    let image = format!("{}/golden/v2:1", registry.address);
    skopeo_copy(
        &format!("oci:{}", fixture("images/v2").display()),
        &format!("docker://{image}"),
        &["--all", "--dest-tls-verify=false"],
    );
    let scratch = Scratch::new();
    let (mut command, tmp) = demo(&scratch, &["--json", "--image", &image]);
    let report: Value = serde_json::from_str(&run(&mut command)).expect("JSON");
    for side in ["download_and_unpack", "mount"] {
        assert!(report[side]["output"].as_str().is_some_and(|it| it.contains("ready")), "{report}");
    }
    assert_nothing_left(&tmp, "after the demo");
    let (mut missing, tmp) = demo(&scratch, &["--image", &image.replace(":1", ":2")]);
    let missing = missing.output().expect("spanfs starts");
    assert_eq!(missing.status.code(), Some(3), "{}", String::from_utf8_lossy(&missing.stderr));
    let (mut failing, _) = demo(&scratch, &["--image", &image, "--", "/no/such/program"]);
    let failing = failing.output().expect("spanfs starts");
    let said = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert_eq!(failing.status.code(), Some(1), "{said}");
    assert!(said.contains("/no/such/program") && said.contains("127"), "{said}");
    assert_nothing_left(&tmp, "after what failed");
}

#[test]
fn bench_measures_every_way_to_start_of_every_image() {
    if !able(&[], true) {
        return;
    }
    let scratch = Scratch::new();
    let tmp = scratch.path("tmp");
    fs::create_dir_all(&tmp).expect("directory");
    let images = ["v2", "plain"].map(|it| format!("oci:{}", fixture("images").join(it).display()));
    let mut command = scratch.spanfs();
    command.args(["bench", "--json", "--runs", "2"]).args(&images).env("TMPDIR", &tmp);
    let reports: Vec<Value> =
        run(&mut command).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(reports.len(), 2);
    for (report, image) in reports.iter().zip(&images) {
        assert_eq!(report["image"], **image, "{report}");
        let kinds = report["starts"].as_object().expect("kinds");
        assert_eq!(kinds.len(), 3, "{report}");
        for start in kinds.values().flat_map(|it| it.as_array().expect("starts")) {
            let [first, end] = ["first_output_seconds", "end_seconds"].map(|it| start[it].as_f64());
            assert!(first > Some(0.0) && end >= first, "{report}");
        }
    }
    assert_nothing_left(&tmp, "after the measurement");
    let text = run(scratch.spanfs().args(["bench", "--runs", "1", &images[0]]).env("TMPDIR", &tmp));
    assert!(text.contains("times sooner") && text.contains("by a trace"), "{text}");
}

#[test]
fn demo_leaves_nothing_whenever_it_is_stopped() {
    if !able(&["python3"], true) {
        return;
    }
    // What it says in front of each of its parts; of the last two on a slow link.
    for (when, link, signal) in [
        ("making an image", "lan", Signal::INT),
        ("building its zTOCs", "lan", Signal::TERM),
        ("download and unpack, then start: ", "edge", Signal::INT),
        ("then start: first output", "edge", Signal::INT),
        ("mount and start: first output", "lan", Signal::HUP),
    ] {
        let scratch = Scratch::new();
        let (mut command, tmp) = demo(&scratch, &["--size", "20M", "--link", link]);
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("spanfs starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        while !said.contains(when) {
            let count = stderr.read_line(&mut said).expect("text");
            assert!(count > 0, "{when:?} was never said: {said}");
        }
        std::thread::sleep(Duration::from_millis(100));
        kill_process(Pid::from_child(&child), signal).expect("kill");
        let code = end(&mut child, when);
        stderr.read_to_string(&mut said).expect("text");
        assert_eq!(code, Some(130), "{when}: {said}");
        assert!(said.contains("stopped"), "{when}: {said}");
        assert_nothing_left(&tmp, when);
    }
}

fn end(child: &mut Child, when: &str) -> Option<i32> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code();
        }
        if Instant::now() > until {
            drop(child.kill());
            panic!("{when}: it goes on after the signal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn demo_says_what_is_wrong_and_leaves_nothing() {
    if !able(&["python3"], true) {
        return;
    }
    let scratch = Scratch::new();
    for (arguments, says) in [
        (&["--link", "carrier-pigeon"][..], "cloud"),
        (&["--size", "much"], "much"),
        (&["--slower", "0"], "0"),
        (&["--image", "UPPER"], "UPPER"),
        (&["--image", "a", "--size", "1M"], "--size"),
    ] {
        let (mut command, tmp) = demo(&scratch, arguments);
        let output = command.output().expect("spanfs starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert_nothing_left(&tmp, "after a wrong flag");
    }
    // A disk that is too small.
    let small = scratch.path("tmp");
    let disk = SmallDisk::mount(&small, c"size=8m");
    let (mut command, _) = demo(&scratch, &["--size", "40M"]);
    let output = command.output().expect("spanfs starts");
    let left = fs::read_dir(&small).expect("directory").count();
    drop(disk);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.contains("TMPDIR"), "{said}");
    assert_eq!(left, 0, "something stays on the small disk");
}
