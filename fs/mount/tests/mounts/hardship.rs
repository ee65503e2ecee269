//! Hard times: readers killed in the middle, no descriptors left.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spanfs_mount::transport::{Privilege, Transport};
use spanfs_mount::{Busy, Ended, Mounter, MounterOptions, Parts};

use crate::conformance::{PATIENCE, Road, mounter};
use crate::content::Fate;
use crate::layers::rich;
use crate::scratch::{Scratch, may_mount};

#[test]
fn a_reader_killed_in_the_middle_of_a_read_ends_and_others_read_on() {
    if !may_mount("killed_reader") {
        return;
    }
    for road in [
        Road::OverFuse(Parts::Hidden, Transport::Dev),
        Road::Inode(Privilege::Root, Transport::Dev),
    ] {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (layer, content) = rich().layer(&scratch.directory("layer"), Some(Fate::Hold));
        let mount = match road {
            Road::Inode(privilege, _) => {
                let layers = vec![(layer.name, layer.content)];
                mounter.inodes(Arc::new(rich().tree()), layers, &at, privilege).unwrap()
            }
            _ => mounter.layer(&layer, &at).unwrap(),
        };
        let mut reader =
            Command::new("cat").arg(at.join("big")).stdout(Stdio::null()).spawn().unwrap();
        content.wait_for_fill();
        reader.kill().unwrap();
        let until = Instant::now() + PATIENCE;
        while reader.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "{road:?}: a killed reader does not end");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        content.release();
        assert!(std::fs::read(at.join("big")).unwrap() == rich().model["big"].content, "{road:?}");
        assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
    }
}

const CHILD: &str = "SPANFS_TEST_CHILD";

#[test]
fn without_descriptors_a_mount_fails_and_the_others_go_on() {
    if !may_mount("descriptor_limit") {
        return;
    }
    let scratch = Scratch::new();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hardship::child_without_descriptors", "--nocapture"])
        .env(CHILD, scratch.path())
        .process_group(0)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("all went well"), "{said} {output:?}");
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
}

/// Not a test: what the one above does to a process of its own.
#[test]
fn child_without_descriptors() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let mounter = Mounter::new(MounterOptions::new(path.join("state"))).unwrap();
    let mount = |name: &str| {
        let directory = path.join(format!("layer-{name}"));
        std::fs::create_dir(&directory).unwrap();
        let (layer, _content) = rich().layer(&directory, Some(Fate::Late));
        let at = path.join(name);
        std::fs::create_dir(&at).unwrap();
        (mounter.layer(&layer, &at), at)
    };
    let (first, at) = mount("first");
    let first = first.unwrap();
    let before = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // Enough to prepare a mount, too few to make one.
    let tight = Rlimit { current: Some(open + 2), maximum: before.maximum };
    setrlimit(Resource::Nofile, tight).unwrap();
    let (second, _) = mount("second");
    let Err(error) = second else { panic!("it was mounted") };
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(format!("{error} {cause}").contains("Too many open files"), "{error}: {cause}");
    assert_eq!(std::fs::read(at.join("tmp/one")).unwrap(), [7], "the first is served");
    setrlimit(Resource::Nofile, before).unwrap();
    mount("third").0.unwrap().unmount(PATIENCE, Busy::Leave).unwrap();
    first.unmount(PATIENCE, Busy::Leave).unwrap();
    writeln!(std::io::stdout(), "all went well").unwrap();
}
