use std::time::{Duration, Instant};

use super::*;
use crate::state::{Change, Listed};

fn open(root: &Path) -> Snapshotter {
    Snapshotter::open(root, Vec::new()).unwrap()
}

fn names(snapshotter: &Snapshotter) -> Vec<String> {
    let mut names = snapshotter.directories.names().unwrap();
    names.sort();
    names
}

#[test]
fn left_over_directories_go_and_their_ids_are_not_given_again() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap();
    // As after a kill between directory and record, and of the peer's temporary ones.
    snapshotter.directories.create(2, Kind::Active, None).unwrap();
    std::fs::create_dir(snapshotter.directories.path().join("new-123")).unwrap();
    drop(snapshotter);
    let snapshotter = open(root.path());
    snapshotter.create("b", Kind::Active, "", Labels::default(), None).unwrap();
    assert_eq!(names(&snapshotter), ["1", "2", "3", "new-123"]);
    snapshotter.cleanup().unwrap();
    assert_eq!(names(&snapshotter), ["1", "3"]);
}

#[test]
fn cleaning_up_spares_what_is_being_made() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    let birth = Birth::begin(&snapshotter, "a", Kind::Active, "").unwrap();
    snapshotter.directories.create(birth.id, Kind::Active, None).unwrap();
    snapshotter.cleanup().unwrap();
    assert_eq!(names(&snapshotter), ["1"]);
    drop(birth);
    assert!(names(&snapshotter).is_empty(), "what was not recorded is taken back");
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    // In the way of the directory of id 1.
    std::fs::write(snapshotter.directories.path().join("1"), "").unwrap();
    let failure = snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap_err();
    assert!(matches!(failure, Failure::Directory(_)), "{failure}");
    assert!(snapshotter.stat("a").is_err());
    snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap();
}

#[test]
fn a_lost_directory_is_made_again_unless_it_had_content() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap();
    snapshotter.commit("A", "a", Labels::default(), "").unwrap();
    snapshotter.create("b", Kind::Active, "", Labels::default(), None).unwrap();
    let paths = [1, 2].map(|id| snapshotter.directories.of(id));
    // One is lost as a whole, the other in part.
    std::fs::remove_dir_all(&paths[0]).unwrap();
    std::fs::remove_dir(paths[1].join("fs")).unwrap();
    drop(snapshotter);
    let snapshotter = open(root.path());
    assert!(snapshotter.directories.work(2).is_dir() && snapshotter.directories.has(2));
    assert!(!snapshotter.directories.has(1), "an empty layer would be a lie");
}

#[test]
fn usage_is_measured_while_active_and_kept_at_commit() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap();
    assert_eq!(snapshotter.usage("a").unwrap().inodes, 1);
    std::fs::write(snapshotter.directories.fs(1).join("f"), vec![1; 50_000]).unwrap();
    snapshotter.commit("A", "a", Labels::default(), "").unwrap();
    let usage = snapshotter.usage("A").unwrap();
    assert_eq!(usage.inodes, 2);
    std::fs::remove_file(snapshotter.directories.fs(1).join("f")).unwrap();
    assert_eq!(snapshotter.usage("A").unwrap(), usage);
    snapshotter.create("v", Kind::View, "A", Labels::default(), None).unwrap();
    assert_eq!(snapshotter.usage("v").unwrap(), Usage::default());
}

#[test]
fn a_child_takes_the_owner_of_its_parent_and_not_its_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "wants root to give owners");
        eprintln!("skipped: only root gives files to others");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let snapshotter = open(root.path());
    snapshotter.create("a", Kind::Active, "", Labels::default(), None).unwrap();
    let content = snapshotter.directories.fs(1);
    std::os::unix::fs::chown(&content, Some(1234), Some(4321)).unwrap();
    std::fs::set_permissions(&content, std::fs::Permissions::from_mode(0o700)).unwrap();
    snapshotter.commit("A", "a", Labels::default(), "").unwrap();
    snapshotter.create("b", Kind::Active, "A", Labels::default(), None).unwrap();
    let child = std::fs::metadata(snapshotter.directories.fs(2)).unwrap();
    assert_eq!((child.uid(), child.gid(), child.mode() & 0o7777), (1234, 4321, 0o755));
}

#[test]
fn a_root_that_options_cannot_carry_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a:b", "a,b"] {
        let failure = Snapshotter::open(&root.path().join(name), Vec::new()).err().unwrap();
        assert!(matches!(failure, Failure::Root(_)), "{failure}");
    }
}

/// A node of 10,000 snapshots, of which only the records exist.
fn crowded(root: &Path) -> Snapshotter {
    let snapshotter = open(root);
    let mut state = State::default();
    for id in 1..=10_000 {
        let now = SystemTime::now();
        let snapshot = Snapshot {
            name: format!("k8s.io/{id}/sha256:{id:064}"),
            id,
            kind: Kind::Committed,
            parent: String::new(),
            labels: [(TARGET, format!("sha256:{id:064}"))].into_iter().collect(),
            created: now,
            updated: now,
            usage: Usage::default(),
            listed: Listed::default(),
        };
        state.apply(Change { removed: None, put: Some(snapshot) });
    }
    snapshotter.ids.lock().last = 10_000;
    *snapshotter.state.write() = state;
    snapshotter.store.lock().rewrite_with_next();
    snapshotter
}

/// Medians, as the machine that tests is shared. The promise is 5 ms; a debug build gets more.
#[test]
fn ten_thousand_snapshots_slow_nothing_down() {
    let root = tempfile::tempdir().unwrap();
    let snapshotter = crowded(root.path());
    snapshotter.create("first", Kind::Active, "", Labels::default(), None).unwrap();
    let labels = Labels::default;
    let filter = ["labels.\"containerd.io/snapshot.ref\"==sha256:7,parent==\"\"".to_owned()];
    let measure = |name: &str, limit: u64, call: &dyn Fn(u32)| {
        let mut times: Vec<_> = (0..21)
            .map(|count| {
                let start = Instant::now();
                call(count);
                start.elapsed()
            })
            .collect();
        times.sort();
        eprintln!("{name}: median {:?}, longest {:?}", times[10], times[20]);
        assert!(times[10] < Duration::from_millis(limit), "{name}: {times:?}");
    };
    let key = |count| format!("key/{count}");
    measure("Prepare", 100, &|count| {
        drop(snapshotter.create(&key(count), Kind::Active, "", labels(), None).unwrap());
    });
    measure("Commit", 50, &|count| {
        snapshotter.commit(&format!("name/{count}"), &key(count), labels(), "").unwrap();
    });
    measure("Update", 50, &|count| {
        drop(snapshotter.update(&format!("name/{count}"), labels(), LabelMask::All).unwrap());
    });
    measure("Stat", 5, &|count| drop(snapshotter.stat(&format!("name/{count}")).unwrap()));
    measure("List of one", 50, &|_| drop(snapshotter.list(&filter).unwrap()));
    measure("List of all", 100, &|_| drop(snapshotter.list(&[]).unwrap()));
    measure("Remove", 50, &|count| snapshotter.remove(&format!("name/{count}")).unwrap());
}
