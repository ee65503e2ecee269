//! The ends of a mount: in use, forced, and left behind by a killed process.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanfs_mount::filesystem::Open;
use spanfs_mount::overlay::OverlayOptions;
use spanfs_mount::policy::{self, Front};
use spanfs_mount::probe::Facts;
use spanfs_mount::transport::{Privilege, Transport};
use spanfs_mount::{Busy, Ended, Mounter, MounterOptions, Parts, recover};

use crate::conformance::{PATIENCE, ROADS, Road, mounter};
use crate::content::Fate;
use crate::layers::{Maker, rich};
use crate::scratch::{Scratch, may_mount};
use crate::snapshot;

#[test]
fn a_forced_unmount_frees_readers_that_wait() {
    if !may_mount("forced_unmount") {
        return;
    }
    let both = [Transport::Dev, Transport::Fuse3];
    for road in both.into_iter().flat_map(|transport| {
        [Road::OverFuse(Parts::Hidden, transport), Road::Inode(Privilege::Root, transport)]
    }) {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (layer, content) = rich().layer(&scratch.directory("layer"), Some(Fate::Hold));
        let mount = match road {
            Road::Inode(privilege, _) => {
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
fn a_server_that_ends_frees_readers_that_wait() {
    if !may_mount("ended_server") {
        return;
    }
    for (privilege, transport) in [
        (Privilege::Root, Transport::Dev),
        (Privilege::Root, Transport::Fuse3),
        (Privilege::User, Transport::Fuse3),
    ] {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, Road::Inode(privilege, transport));
        let at = scratch.directory("at");
        let (layer, content) = rich().layer(&scratch.directory("layer"), Some(Fate::Hold));
        let layers = vec![(layer.name, layer.content)];
        let mount = mounter.inodes(Arc::new(rich().tree()), layers, &at, privilege).unwrap();
        let (path, second) = (at.join("big"), at.join("bin/su"));
        let reader = std::thread::spawn(move || std::fs::read(path).map(drop).unwrap_err());
        content.wait_for_fill();
        drop(mounter);
        assert!(reader.join().unwrap().raw_os_error().is_some());
        assert!(std::fs::read(second).is_err(), "nobody answers any more");
        drop(mount);
        assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
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
    for (number, road) in ROADS.into_iter().enumerate().filter(|(_, road)| road.is_there()) {
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
    road.set(&mut options);
    let mounter = Mounter::new(options).unwrap();
    let fate = if road == Road::Direct { None } else { Some(Fate::Late) };
    let (layer, _content) = rich().layer(&path.join("layer"), fate);
    let at = path.join("at");
    let _mount = match road {
        Road::Inode(privilege, _) => {
            let layers = vec![(layer.name, layer.content)];
            mounter.inodes(Arc::new(rich().tree()), layers, &at, privilege).unwrap()
        }
        _ => mounter.image(&[layer], &at, &OverlayOptions::default()).unwrap(),
    };
    writeln!(std::io::stdout(), "child is ready").unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn in_a_user_namespace_inodes_are_shown_without_help() {
    if !may_mount("user_namespace") {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.directory("at");
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "life::child_in_a_user_namespace", "--nocapture"])
        .env(CHILD, scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success() && said.contains("all is the same"), "{said} {child:?}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0, "it was mounted outside too");
}

/// Not a test by itself: runs in a namespace of its own, see above.
#[test]
fn child_in_a_user_namespace() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let facts = Facts::gather(&path);
    let choice = policy::choose(&facts, None).unwrap();
    assert_eq!((choice.front, choice.privilege), (Front::Inode, Privilege::Root), "{facts:?}");
    let mounter = Mounter::new(MounterOptions::new(path.join("state"))).unwrap();
    let maker = stack_for_user();
    let (layer, _content) = maker.layer(&path.join("layer"), Some(Fate::Late));
    let layers = vec![(layer.name, layer.content)];
    let at = path.join("at");
    let tree = Arc::new(maker.tree());
    let mount = mounter.inodes(tree, layers, &at, choice.privilege).unwrap();
    snapshot::assert_same(&snapshot::of(&at), &maker.model, "in a user namespace");
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
    writeln!(std::io::stdout(), "all is the same").unwrap();
}

/// Only owners that the namespace maps can be compared.
fn stack_for_user() -> Maker {
    let mut maker = Maker::default();
    maker.directory("bin", 0o755).file("bin/tool", 0o755, vec![1; 100_000]);
    for record in &mut maker.records {
        (record.uid, record.gid) = (0, 0);
    }
    for seen in maker.model.values_mut() {
        seen.owner = (0, 0);
    }
    maker
}
