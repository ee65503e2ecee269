//! kill -9 at any moment of a pass: nothing of it is believed that is not whole.

use std::process::{Command, Stdio};

use super::*;
use crate::testing::PATIENCE;

const ROOT: &str = "SPANFS_TEST_WHOLE_CRASH_ROOT";
/// How long the source takes for each chunk.
const DELAY: &str = "SPANFS_TEST_WHOLE_CRASH_DELAY_MICROS";

fn tar() -> Vec<u8> {
    tar_of(77, 250_000)
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let (Some(root), Ok(delay)) = (std::env::var_os(ROOT), std::env::var(DELAY)) else { return };
    let delay = Duration::from_micros(delay.parse().unwrap());
    let blob = TestBlob::with_delay(tar(), delay);
    let cache = cache(Path::new(&root));
    std::fs::write(Path::new(&root).join("started"), b"").unwrap();
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        // Nobody else has it; the keeper may look at it for a moment.
        let _ = cache.remove(blob.digest());
        let spec = WholeSpec { durable: Durable::No, ..spec(blob.clone(), None) };
        let whole = cache.whole(spec).unwrap();
        let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
        layer.make_durable();
    }
}

fn run_and_kill(root: &Path, delay: Duration, after: Duration) {
    let started = root.join("started");
    let _ = std::fs::remove_file(&started);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "whole::tests::crash::child"])
        .env(ROOT, root)
        .env(DELAY, delay.as_micros().to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let waited = Instant::now();
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
    let tar = tar();
    let mut random = Random(5);
    let (mut parts, mut again) = (0, 0);
    let mut round = 0;
    // Where a kill hits is chance; but all of that chance must have been seen.
    while round < 10 || ((parts == 0 || again == 0) && round < 40) {
        round += 1;
        // Half of the kills come while the blob is on its way, the others mostly later.
        let delay = Duration::from_micros(if round % 2 == 0 { 3000 } else { 0 });
        run_and_kill(root.path(), delay, Duration::from_millis(5 + random.below(40)));
        let blob = TestBlob::new(tar.clone());
        let part = cache_directory(root.path()).layer(blob.digest()).join(PART);
        parts += usize::from(part.exists());
        let cache = cache(root.path());
        assert!(!part.exists(), "what was half there goes when the cache is opened");
        let whole = cache.whole(spec(blob.clone(), Some(Digest::of(&tar)))).unwrap();
        again += usize::from(whole.origin == Origin::Blob);
        let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("it has a zTOC") };
        assert_eq!(layer.role(), Role::Owner, "the locks of the dead are free");
        assert!(read(layer, 0, tar.len()).unwrap() == tar);
        wait_until("verification", || layer.complete_file().is_some());
        assert_content(&whole, &tar);
        // A seal may still be on its way to a busy disk; the next one would find us at it.
        let directory = layer.layer_path().parent().unwrap().to_owned();
        drop((whole, cache));
        let claim = Claim::open(&directory).unwrap();
        wait_until("the end of the seal", || claim.try_fill().unwrap().is_some());
    }
    eprintln!("{parts} of {round} kills left a part, {again} made a new pass");
    assert!(parts > 0 && again > 0);
}

fn cache_directory(root: &Path) -> crate::cache::directory::Directory {
    crate::cache::directory::Directory::open(root).unwrap()
}
