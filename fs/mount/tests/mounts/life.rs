//! The ends of a mount: in use, forced, and left behind by a killed process.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanfs_mount::filesystem::Open;
use spanfs_mount::overlay::OverlayOptions;
use spanfs_mount::transport::fuse3::Privilege;
use spanfs_mount::{Busy, Ended, Mounter, MounterOptions, Parts, recover};

use crate::conformance::{PATIENCE, ROADS, Road, mounter};
use crate::content::Fate;
use crate::layers::rich;
use crate::scratch::{Scratch, may_mount};

#[test]
fn a_forced_unmount_frees_readers_that_wait() {
    if !may_mount("forced_unmount") {
        return;
    }
    for road in [Road::OverFuse(Parts::Hidden), Road::Inode(Privilege::Root)] {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (layer, content) = rich().layer(&scratch.directory("layer"), Some(Fate::Hold));
        let mount = match road {
            Road::Inode(privilege) => {
                let layers = vec![(layer.name, layer.content)];
                mounter.inodes(Arc::new(rich().tree()), layers, &at, privilege).unwrap()
            }
            _ => mounter.image(&[layer], &at, &OverlayOptions::default()).unwrap(),
        };
        let path = at.join("big");
        let reader = std::thread::spawn(move || std::fs::read(path).map(drop).unwrap_err());
        content.wait_for_fill();
        let start = Instant::now();
        let ended = mount.unmount(Duration::from_millis(100), Busy::Abort).unwrap();
        assert!(reader.join().unwrap().raw_os_error().is_some());
        assert_eq!(ended, Ended::Gone, "{road:?}");
        assert!(start.elapsed() < PATIENCE);
        assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
        content.release(); // Replies that come after the end must do no harm.
    }
}

#[test]
fn unmounting_what_the_user_unmounted_already_is_fine() {
    if !may_mount("unmounted_already") {
        return;
    }
    let scratch = Scratch::new();
    let mounter = mounter(&scratch, Road::Direct);
    let at = scratch.directory("at");
    let (layer, _content) = rich().layer(&scratch.directory("layer"), Some(Fate::Late));
    let mount = mounter.layer(&layer, &at).unwrap();
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}

#[test]
fn a_failed_mount_leaves_nothing() {
    if !may_mount("failed_mount") {
        return;
    }
    let scratch = Scratch::new();
    let mounter = mounter(&scratch, Road::Direct);
    let at = scratch.directory("at");
    let (good, _content) = rich().layer(&scratch.directory("good"), Some(Fate::Late));
    let (mut bad, _content) = rich().layer(&scratch.directory("bad"), Some(Fate::Late));
    std::fs::write(&bad.index, [0; 4096]).unwrap();
    bad.name = "bad".into();
    let Err(error) = mounter.image(&[good, bad], &at, &OverlayOptions::default()) else {
        panic!("an index of zeros was mounted");
    };
    assert!(error.to_string().contains("erofs"), "{error}");
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
    let state = scratch.path().join("state");
    assert_eq!(std::fs::read_dir(state.join("records")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(state).unwrap().count(), 2);
}

const CHILD: &str = "SPANFS_TEST_CHILD";

#[test]
fn a_killed_servers_mounts_fail_at_once_and_are_recovered() {
    if !may_mount("killed_server") {
        return;
    }
    for (number, road) in ROADS.into_iter().enumerate() {
        let scratch = Scratch::new();
        let at = scratch.directory("at");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "life::child_that_serves_until_killed", "--nocapture"])
            .env(CHILD, format!("{number} {}", scratch.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.contains("child is ready"));
        assert!(ready, "the child mounted nothing");
        let records = MounterOptions::new(scratch.path().join("state")).records();
        assert!(recover(&records, Privilege::Root).unwrap().is_empty(), "its owner lives");
        let small = std::fs::read(at.join("tmp/one")).unwrap();
        assert_eq!(small, [7]);
        child.kill().unwrap();
        child.wait().unwrap();
        let start = Instant::now();
        let read = std::fs::read(at.join("big"));
        assert!(start.elapsed() < PATIENCE, "a read of a dead mount hung");
        match road {
            Road::Direct => assert!(read.unwrap() == rich().model["big"].content),
            _ => assert!(read.unwrap_err().raw_os_error().is_some(), "{road:?}"),
        }
        let recovered = recover(&records, Privilege::Root).unwrap();
        assert_eq!(recovered.len(), 1, "{road:?}");
        assert!(recovered[0].outcome.is_ok(), "{recovered:?}");
        assert_eq!(recovered[0].mount_point, at);
        assert_eq!(scratch.mounts(), Vec::<PathBuf>::new(), "{road:?}");
        assert_eq!(std::fs::read_dir(scratch.path().join("state")).unwrap().count(), 2);
        assert!(recover(&records, Privilege::Root).unwrap().is_empty());
    }
}

/// Not a test: the body of a process that the test above kills.
#[test]
fn child_that_serves_until_killed() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (number, path) = task.split_once(' ').unwrap();
    let road = ROADS[number.parse::<usize>().unwrap()];
    let path = PathBuf::from(path);
    let mut options = MounterOptions::new(path.join("state"));
    options.open = Open::Stateless;
    if let Road::OverFuse(parts) = road {
        options.parts = parts;
    }
    let mounter = Mounter::new(options).unwrap();
    let fate = if road == Road::Direct { None } else { Some(Fate::Late) };
    let (layer, _content) = rich().layer(&path.join("layer"), fate);
    let at = path.join("at");
    let _mount = match road {
        Road::Inode(privilege) => {
            let layers = vec![(layer.name, layer.content)];
            mounter.inodes(Arc::new(rich().tree()), layers, &at, privilege).unwrap()
        }
        _ => mounter.image(&[layer], &at, &OverlayOptions::default()).unwrap(),
    };
    writeln!(std::io::stdout(), "child is ready").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}
