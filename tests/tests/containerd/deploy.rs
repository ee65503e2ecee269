//! What administrators get: settings and snippets that are true, an installation that can be taken back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use spanfs_registry::Registry;
use spanfs_snapshotter::config::{Config, dump};
use spanfs_tests::peers::{able, built, repository, run};
use tempfile::TempDir;

use crate::lazy::{assert_lazy, image, pull_by_cri};
use crate::node::{Node, Setup};
use crate::process::{Ended, run_for};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(mended_configuration_of_containerd_is_lazy);

fn deploy(path: &str) -> PathBuf {
    repository().join("snapshotter-shim/deploy").join(path)
}

fn read(path: &str) -> String {
    let path = deploy(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A configuration that is read by the built program.
fn check_config(path: &Path) {
    run(Command::new(built("spanfs-snapshotter")).arg("--config").arg(path).arg("--check-config"));
}

#[test]
fn settings_file_has_every_key_with_its_default() {
    check_config(&deploy("config.toml"));
    let config = Config::parse(&read("config.toml")).expect("a good file");
    assert_eq!(config.warnings, []);
    assert_eq!(dump(&config.raw), dump(&Config::default().raw));
    // Each of them stands there.
    let text = read("config.toml");
    for line in dump(&Config::default().raw).lines().filter_map(|line| line.split_once(" = ")) {
        assert!(text.contains(&format!("{} = ", line.0.trim())), "{} is missing", line.0);
    }
}

#[test]
fn settings_for_each_mode_are_good() {
    for mode in ["lazy", "parallel"] {
        let path = format!("config.{mode}.toml");
        check_config(&deploy(&path));
        let modes = Config::parse(&read(&path)).expect("a good file").settings.pull_modes;
        assert_eq!(modes.parallel.is_some(), mode == "parallel", "{path}");
    }
}

/// Paths of the units are those that the installation uses, and systemd understands them where it is.
#[test]
fn units_are_good() {
    if !able(&["systemd-analyze"], false) {
        return;
    }
    let scratch = TempDir::new().expect("temporary directory");
    let units = scratch.path().join("etc/systemd/system");
    fs::create_dir_all(&units).expect("directory");
    for program in ["usr/local/bin/soci-snapshotter-grpc", "bin/kill"] {
        let program = scratch.path().join(program);
        fs::create_dir_all(program.parent().expect("a parent")).expect("directory");
        fs::write(&program, "#!/bin/sh\n").expect("write");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    for name in ["soci-snapshotter.service", "soci-snapshotter.socket"] {
        fs::copy(deploy("systemd").join(name), units.join(name)).expect("copy");
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--recursive-errors=no", "--man=no"]);
    verify.arg(format!("--root={}", scratch.path().display()));
    let ended = run_for(
        verify.args(["soci-snapshotter.service", "soci-snapshotter.socket"]),
        std::time::Duration::from_secs(60),
    );
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let service = read("systemd/soci-snapshotter.service");
    // These would give it mounts that nobody else sees.
    for setting in ["ProtectSystem", "PrivateTmp", "PrivateMounts", "ReadWritePaths", "ProtectHome"]
    {
        assert!(!service.lines().any(|line| line.starts_with(setting)), "{setting}");
    }
}

/// `spanfs doctor` with more arguments, on a configuration of containerd alone.
fn doctor(config: &Path, release: &str, arguments: &[&str]) -> Ended {
    let mut command = Command::new(built("spanfs"));
    command.args(["--json", "doctor", "--config-only", "--containerd-release", release]);
    command.arg("--containerd-config").arg(config).args(arguments);
    run_for(&mut command, std::time::Duration::from_secs(60))
}

#[test]
fn doctor_finds_nothing_in_our_snippets_and_faults_in_wrong_ones() {
    let scratch = TempDir::new().expect("temporary directory");
    let path = scratch.path().join("config.toml");
    for (snippet, releases) in
        [("1.x", &["1.6", "1.7"][..]), ("2.0", &["2.0"]), ("2.1", &["2.1", "2.3"])]
    {
        let text = read(&format!("containerd/{snippet}.toml"));
        for release in releases {
            fs::write(&path, &text).expect("write");
            let ended = doctor(&path, release, &[]);
            let said: Value = serde_json::from_str(&ended.stdout).expect("JSON");
            assert!(
                ended.status.success() && said["ok"] == true,
                "{snippet} for {release}: {said}"
            );
            // Without any of its lines, something is wrong.
            for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains(" = "))
            {
                let others = text.lines().enumerate().filter(|(other, _)| *other != number);
                let broken: Vec<_> = others.map(|(_, line)| line).collect();
                fs::write(&path, broken.join("\n")).expect("write");
                let ended = doctor(&path, release, &[]);
                let said: Value = serde_json::from_str(&ended.stdout).expect("JSON");
                let verdicts = said["findings"].as_array().expect("findings").iter();
                let all_is_well = verdicts.into_iter().all(|it| it["verdict"] == "ok");
                // What only helps a transfer that picks a platform.
                assert!(!all_is_well || line.contains("platform"), "{snippet} without {line}");
            }
        }
    }
}

/// The configuration that containerd prints itself, mended by `spanfs doctor`.
fn mended_configuration_of_containerd_is_lazy(version: Version) {
    let scratch = TempDir::new().expect("temporary directory");
    let path = scratch.path().join("config.toml");
    let mut containerd = Command::new("containerd");
    containerd.args(["config", "default"]).env("PATH", version.path());
    let default = run(&mut containerd);
    // Where CI lacks CAP_SYS_RESOURCE, runc may not make a sandbox less likely to be killed.
    let default =
        default.replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true");
    fs::write(&path, &default).expect("write");
    let release = if version == Version::One { "1.6" } else { "2.3" };
    assert_eq!(doctor(&path, release, &[]).status.code(), Some(1), "it is not for us");
    let ended = doctor(&path, release, &["--fix"]);
    assert!(ended.status.success(), "{ended:?}");
    let mended = fs::read_to_string(&path).expect("the file");
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/lazy", "v2");
    let node = Node::start(&Setup { containerd: Some(&mended), ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    assert_eq!(node.within("k8s.io").run(&reference, "first", &[]), "ready\n");
    assert!(doctor(&path, release, &["--undo"]).status.success());
    assert_eq!(fs::read_to_string(&path).expect("the file"), default);
}

/// All that is below a directory: mode, link or content, but for times.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).expect("it is there");
        let content = match meta.is_dir() {
            true => Vec::new(),
            false => fs::read(&path).expect("a file"),
        };
        if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            waiting.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        let below = path.strip_prefix(root).expect("below").to_owned();
        found.insert(below, (meta.mode(), content));
    }
    found
}

struct Host {
    root: TempDir,
    release: TempDir,
}

impl Host {
    fn new() -> Self {
        let release = TempDir::new().expect("temporary directory");
        for program in ["spanfs-snapshotter", "soci", "spanfs"] {
            std::os::unix::fs::symlink(built(program), release.path().join(program)).expect("link");
        }
        Self { root: TempDir::new().expect("temporary directory"), release }
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
        fs::write(path, text).expect("write");
    }

    fn script(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(deploy("install.sh"));
        command.args(arguments).arg("--root").arg(self.root.path());
        command.arg("--from").arg(self.release.path());
        run_for(&mut command, std::time::Duration::from_secs(120))
    }

    fn must(&self, arguments: &[&str]) -> String {
        let ended = self.script(arguments);
        assert!(ended.status.success(), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    }
}

#[test]
fn installation_is_idempotent_and_can_be_taken_back() {
    let host = Host::new();
    // The peer is there, with settings of the administrator's.
    host.put("usr/local/bin/soci-snapshotter-grpc", "the peer's");
    host.put("etc/systemd/system/soci-snapshotter.service", "[Unit]\nDescription=the peer's\n");
    host.put("etc/soci-snapshotter-grpc/config.toml", "metrics_address = '127.0.0.1:1'\n");
    host.put("etc/containerd/config.toml", "# ours\nversion = 2\n");
    let before = tree(host.root.path());
    let install = ["install", "--containerd-release", "1.7"];
    host.must(&install);
    let installed = tree(host.root.path());
    let program = &installed[Path::new("usr/local/bin/soci-snapshotter-grpc")];
    assert_eq!(program.1, fs::read(built("spanfs-snapshotter")).expect("a program"));
    let settings = &installed[Path::new("etc/soci-snapshotter-grpc/config.toml")];
    assert_eq!(
        settings,
        &before[Path::new("etc/soci-snapshotter-grpc/config.toml")],
        "theirs stay"
    );
    let path = host.root.path().join("etc/containerd/config.toml");
    assert!(doctor(&path, "1.7", &[]).status.success());
    assert!(host.must(&install).contains("nothing to do"));
    assert!(tree(host.root.path()) == installed, "a second time changes nothing");
    assert!(host.must(&["status"]).contains("/usr/local/bin/soci"));

    host.must(&["uninstall"]);
    let after = tree(host.root.path());
    let names = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert!(after == before, "every file is as it was");
    assert!(host.must(&["uninstall"]).contains("nothing is installed"));
    assert_eq!(host.script(&["status"]).status.code(), Some(1));
}

#[test]
fn installation_on_an_empty_host_for_parallel_pulls() {
    let host = Host::new();
    host.must(&["install", "--mode", "parallel", "--containerd-release", "2.3"]);
    let settings = host.root.path().join("etc/soci-snapshotter-grpc/config.toml");
    assert!(
        Config::read(&settings, true).expect("settings").settings.pull_modes.parallel.is_some()
    );
    // Changed since, so it is not ours to remove.
    fs::write(&settings, "debug = true\n").expect("write");
    host.must(&["uninstall"]);
    let left: Vec<_> =
        tree(host.root.path()).into_keys().filter(|path| path.extension().is_some()).collect();
    assert_eq!(left, [Path::new("etc/soci-snapshotter-grpc/config.toml")]);
}

#[test]
fn installation_that_can_not_be_finished_leaves_nothing() {
    let host = Host::new();
    // The form of 2017, which is not mended.
    host.put("etc/containerd/config.toml", "root = '/x'\n");
    let before = tree(host.root.path());
    let ended = host.script(&["install", "--containerd-release", "1.7"]);
    assert!(!ended.status.success() && ended.stderr.contains("as it was"), "{ended:?}");
    assert!(tree(host.root.path()) == before, "{:?}", tree(host.root.path()).keys());
    for (arguments, said) in [
        (&["install", "--mode", "slow"][..], "--mode is lazy or parallel"),
        (&["instal"], "unknown command"),
        (&["install", "--settings", "/nonexistent"], "see above"),
    ] {
        let ended = host.script(arguments);
        assert!(!ended.status.success() && ended.stderr.contains(said), "{ended:?}");
    }
}
