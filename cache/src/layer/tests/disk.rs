//! A disk that is full, or loses what it took.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::testing::Tmpfs;

#[test]
fn a_full_disk_hands_over_to_memory() {
    let Some(disk) = Tmpfs::new(c"size=128k") else { return };
    let place = Place::with_memory(disk.path(), 1 << 20);
    let test = TestLayer::new(70, 100 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    assert!(read(&layer, 0, 100 * SPAN).unwrap() == test.content());
    let status = layer.status();
    assert!(status.spans_present > 5 && status.spans_present < 32, "{}", status.spans_present);
    assert!(status.disk_error.unwrap().contains("No space left"));
    assert!(place.works.memory.used_bytes() > 60 * SPAN as u64);
    assert!(layer.complete_file().is_none());
    assert_eq!(test.blob.wants(), 100);
    drop(layer);
    // A decoding thread may hold the layer for a moment.
    wait_until("the release", || place.works.memory.used_bytes() == 0);
    // What was recorded survives; nothing else is believed.
    let layer = test.open(&place);
    assert!(read(&layer, 0, 100 * SPAN).unwrap() == test.content());
}

/// A file system of which so many bytes may be used, gone with this value: of all that this can be had
/// with, btrfs alone counts what root writes, too.
struct Limited(tempfile::TempDir);

impl Limited {
    /// `None`, with a word, where there are no tools for it.
    fn new(bytes: u64) -> Option<Self> {
        if Command::new("mkfs.btrfs").arg("--version").output().is_err() {
            assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "btrfs-progs is missing");
            eprintln!("skipped: btrfs-progs is not installed");
            return None;
        }
        let this = Self(tempfile::tempdir().unwrap());
        let (disk, at) = (this.0.path().join("disk"), this.path());
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&disk));
        run(Command::new("mount").args(["-o", "loop"]).args([&disk, &at]));
        run(Command::new("btrfs").args(["quota", "enable"]).arg(&at));
        this.limit(&bytes.to_string());
        Some(this)
    }

    fn limit(&self, bytes: &str) {
        run(Command::new("btrfs").args(["qgroup", "limit", bytes]).arg(self.path()));
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.path()).output());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// As a full disk: what the quota does not allow is read from memory, and what it allows is kept.
#[test]
fn a_quota_hands_over_to_memory() {
    const LONG: usize = 64 << 10;
    let Some(disk) = Limited::new(6 << 20) else { return };
    let place = Place::with_memory(&disk.path(), 32 << 20);
    let test = TestLayer::new(73, 200 * LONG, LONG, 0);
    let layer = test.open(&place);
    assert!(read(&layer, 0, 200 * LONG).unwrap() == test.content());
    let status = layer.status();
    assert!(status.spans_present > 5 && status.spans_present < 150, "{}", status.spans_present);
    assert!(status.disk_error.unwrap().contains("quota exceeded"));
    assert!(layer.complete_file().is_none());
    assert_eq!(test.blob.wants(), 200);
    drop(layer);
    wait_until("the release", || place.works.memory.used_bytes() == 0);
    disk.limit("none");
    let layer = test.open(&place);
    assert!(read(&layer, 0, 200 * LONG).unwrap() == test.content());
    wait_complete(&layer);
    let again = test.blob.wants() - 200;
    assert!(again < 195, "{again} spans came again: none was kept");
}

#[test]
fn memory_has_a_hard_limit() {
    let Some(disk) = Tmpfs::new(c"size=64k") else { return };
    let place = Place::with_memory(disk.path(), 10 * SPAN as u64);
    let test = TestLayer::new(71, 100 * SPAN, SPAN, 0);
    let layer = test.open(&place);
    let mut random = Random(5);
    for _ in 0..500 {
        let at = random.below(98 * SPAN as u64) as usize;
        let found = read(&layer, at as u64, 2 * SPAN).unwrap();
        assert!(found == test.content()[at..at + 2 * SPAN]);
        assert!(place.works.memory.used_bytes() <= 10 * SPAN as u64);
    }
}

#[test]
fn a_layer_file_cut_under_us_is_replaced_by_memory() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(72, 20 * SPAN, SPAN, 0);
    let layer = test.open(&Place::new(root.path()));
    fill(&layer, 0..layer.len()).unwrap();
    wait_complete(&layer);
    std::fs::File::options().write(true).open(layer.layer_path()).unwrap().set_len(100).unwrap();
    assert!(read(&layer, 0, 20 * SPAN).unwrap() == test.content());
    assert!(layer.complete_file().is_none());
    assert!(layer.status().disk_error.is_some());
}

/// Whoever waits is answered from where a span was inflated, before anybody tries to keep it.
#[test]
fn a_span_that_can_be_kept_nowhere_is_read_once() {
    let Some(disk) = Tmpfs::new(c"size=64k") else { return };
    let place = Place::with_memory(disk.path(), 0);
    let bytes = (0..40 * SPAN).map(|at| (at / 7) as u8).collect();
    // Late enough for the reply to come from where the span was inflated.
    let blob = TestBlob::with_delay(bytes, Duration::from_millis(20));
    let test = TestLayer::of(blob, SPAN, 0);
    let layer = test.open(&place);
    for span in 0..40 {
        let at = UncompressedOffset((span * SPAN) as u64);
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = layer.clone();
        let reply = move |result: Result<(), ReadError>| {
            let mut buffer = vec![0; SPAN];
            let found = result.and_then(|()| reader.read_present(at, &mut buffer));
            drop(sender.send(found.map(|len| (len, buffer))));
        };
        layer.fill(at..UncompressedOffset(at.0 + SPAN as u64), Box::new(reply));
        let (len, bytes) = receiver.recv_timeout(crate::testing::PATIENCE).unwrap().unwrap();
        assert_eq!(len, Some(SPAN));
        assert!(bytes == test.content()[span * SPAN..][..SPAN], "span {span}");
    }
    assert!(layer.status().spans_present < 16, "the disk has no room for them");
}
