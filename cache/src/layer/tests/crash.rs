//! kill -9 at any moment: the next run serves right bytes, and keeps most of what was there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::testing::PATIENCE;

const ROOT: &str = "SPANFS_TEST_CRASH_ROOT";
const COUNT: usize = 400;

fn test_layer() -> TestLayer {
    TestLayer::new(77, COUNT * SPAN + 900, SPAN, 300)
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let test = test_layer();
    let layer = test.open(&Place::new(Path::new(&root)));
    std::fs::write(PathBuf::from(root).join("started"), b"").unwrap();
    let mut random = Random(u64::from(std::process::id()));
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE {
        let at = random.below((COUNT * SPAN) as u64);
        read(&layer, at, 100).unwrap();
    }
}

fn run_and_kill(root: &Path, after: Duration) {
    let started = root.join("started");
    let _ = std::fs::remove_file(&started);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "layer::tests::crash::child"])
        .env(ROOT, root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let waited = std::time::Instant::now();
    while !started.exists() && waited.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(started.exists(), "the child did not start");
}

#[test]
fn right_bytes_after_every_kill() {
    let root = tempfile::tempdir().unwrap();
    let test = test_layer();
    let mut random = Random(3);
    let mut survived = 0;
    for round in 0..8 {
        run_and_kill(root.path(), Duration::from_millis(random.below(30)));
        let layer = test.open(&Place::new(root.path()));
        assert_eq!(layer.role(), Role::Owner, "the lock of the dead is free");
        let claimed = layer.claims.iter().flatten().count();
        let before = test.blob.wants();
        for _ in 0..50 {
            let at = random.below((COUNT * SPAN - SPAN) as u64) as usize;
            assert!(read(&layer, at as u64, SPAN).unwrap() == test.content()[at..at + SPAN]);
        }
        let refetched = layer.status().fetches as usize;
        assert_eq!(refetched, test.blob.wants() - before);
        survived = survived.max(claimed);
        if round == 7 {
            assert!(read(&layer, 0, test.content().len()).unwrap() == test.content());
            wait_complete(&layer);
        }
    }
    assert!(survived > 20, "{survived} spans were kept over a kill at best");
}
