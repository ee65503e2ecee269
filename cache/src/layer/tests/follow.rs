//! Who reads the layer file past us is told what stands in it, and what does not any more.

use std::collections::BTreeSet;
use std::sync::Weak;

use parking_lot::Mutex;

use super::*;
use crate::Follower;

/// Spans that may be read past us, as far as it was told.
struct Told {
    spans: Mutex<BTreeSet<u64>>,
    layer: Weak<Layer>,
}

fn spans(range: Range<UncompressedOffset>) -> Range<u64> {
    assert_eq!((range.start.0 % SPAN as u64, range.end.0 % SPAN as u64), (0, 0));
    range.start.0 / SPAN as u64..range.end.0 / SPAN as u64
}

impl Follower for Told {
    fn handle_stands(&self, range: Range<UncompressedOffset>) {
        let Some(layer) = self.layer.upgrade() else { return };
        let mut told = self.spans.lock();
        told.extend(spans(range).filter(|span| stands(&layer, *span)));
    }

    fn handle_gone(&self, range: Range<UncompressedOffset>) {
        let Some(layer) = self.layer.upgrade() else { return };
        let is_gone = |span: &u64| spans(range.clone()).contains(span) && !stands(&layer, *span);
        self.spans.lock().retain(|span| !is_gone(span));
    }
}

impl Told {
    fn follow(layer: &Layer) -> Arc<Self> {
        let told = Arc::new(Self { spans: Mutex::default(), layer: layer.me.clone() });
        let weak: Weak<Self> = Arc::downgrade(&told);
        layer.follow(weak);
        told
    }

    fn wait_for(&self, what: &str, expected: impl IntoIterator<Item = u64>) {
        let expected: BTreeSet<u64> = expected.into_iter().collect();
        wait_until(what, || *self.spans.lock() == expected);
    }
}

fn stands(layer: &Layer, span: u64) -> bool {
    let start = UncompressedOffset(span * SPAN as u64);
    layer.stands(start..UncompressedOffset(start.0 + SPAN as u64))
}

#[test]
fn what_stands_is_told_and_what_comes() {
    let root = tempfile::tempdir().unwrap();
    let layer = TestLayer::new(1, 8 * SPAN, SPAN, 0).open(&Place::new(root.path()));
    let span = SPAN as u64;
    fill(&layer, span..3 * span).unwrap();
    wait_until("the write of what was read", || stands(&layer, 1) && stands(&layer, 2));
    let told = Told::follow(&layer);
    told.wait_for("what was there", 1..3);
    fill(&layer, 5 * span..6 * span).unwrap();
    told.wait_for("what came", [1, 2, 5]);
    assert!(!stands(&layer, 0) && stands(&layer, 5));
    let at = UncompressedOffset;
    assert!(!layer.stands(at(span)..at(3 * span + 1)) && !layer.stands(at(0)..at(9 * span)));
    // What an earlier run left is told once it is believed.
    let test = TestLayer::new(1, 8 * SPAN, SPAN, 0);
    drop(layer);
    let layer = test.open(&Place::new(root.path()));
    let told = Told::follow(&layer);
    fill(&layer, 2 * span..3 * span).unwrap();
    told.wait_for("what is believed", [2]);
    assert_eq!(test.blob.wants(), 0);
}

#[test]
fn what_is_recorded_is_told_after_its_first_read() {
    let root = tempfile::tempdir().unwrap();
    let layer = TestLayer::new(1, 8 * SPAN, SPAN, 0).open(&Place::new(root.path()));
    let span = SPAN as u64;
    let all = UncompressedOffset(0)..UncompressedOffset(4 * span);
    layer.recording_begins();
    layer.recording_begins();
    let told = Told::follow(&layer);
    layer.prefetch(all, Priority::Background);
    fill(&layer, 6 * span..7 * span).unwrap();
    told.wait_for("what was missed", [6]);
    wait_until("the prefetch", || (0..4).all(|it| layer.lives.of(it) == Life::InFile));
    assert!(layer.present_file(UncompressedOffset(span)..UncompressedOffset(span + 1)).is_some());
    told.wait_for("what was read", [1, 6]);
    assert!(!stands(&layer, 0));
    layer.recording_ended();
    assert!(!stands(&layer, 0), "another image records on");
    layer.recording_ended();
    told.wait_for("the rest", [0, 1, 2, 3, 6]);
    // The next image wants to know of all first reads, too.
    layer.observe(Weak::new(), 0);
    layer.recording_begins();
    told.wait_for("that all is recorded", []);
    assert!(layer.present_file(UncompressedOffset(0)..UncompressedOffset(1)).is_some());
    told.wait_for("what was read", [0]);
}

#[test]
fn what_is_gone_is_told() {
    let root = tempfile::tempdir().unwrap();
    let layer = TestLayer::new(1, 8 * SPAN, SPAN, 0).open(&Place::new(root.path()));
    let told = Told::follow(&layer);
    fill(&layer, 0..layer.len()).unwrap();
    told.wait_for("all", 0..8);
    // Cut by somebody.
    std::fs::File::options().write(true).open(layer.layer_path()).unwrap().set_len(100).unwrap();
    read(&layer, SPAN as u64, 10).unwrap();
    told.wait_for("that nothing stands there", []);

    let root = tempfile::tempdir().unwrap();
    let layer = TestLayer::new(2, 8 * SPAN, SPAN, 0).open(&Place::new(root.path()));
    let told = Told::follow(&layer);
    fill(&layer, 0..SPAN as u64).unwrap();
    told.wait_for("one", [0]);
    layer.condemn("the test says so".into());
    told.wait_for("that nothing may be read", []);
    assert!(!stands(&layer, 0));
}
