//! Who reads the layer file past us, and what they may read there.
//!
//! A span may be read past us once it stands in the file, but not before its first read if an image
//! records those: nobody would tell of it.

use std::ops::Range;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use spanfs_fetch::Priority;
use spanfs_layer::UncompressedOffset;

use crate::Follower;
use crate::life::Life;

use super::Layer;

#[derive(Default)]
pub(super) struct Followers {
    all: RwLock<Vec<Weak<dyn Follower>>>,
    /// Images that record first reads.
    recorders: AtomicUsize,
}

impl Layer {
    pub(super) fn add_follower(&self, follower: Weak<dyn Follower>) {
        let mut all = self.followers.all.write();
        all.retain(|it| it.strong_count() > 0);
        all.push(follower);
        drop(all);
        self.tell_all_later();
    }

    /// Whether this span may be read past us.
    fn is_open(&self, span: usize) -> bool {
        let is_read = self.touched.get(span).is_some_and(|it| it.load(Ordering::SeqCst));
        self.lives.of(span) == Life::InFile && (is_read || !self.is_recorded())
    }

    pub(super) fn all_open(&self, range: Range<UncompressedOffset>) -> bool {
        self.fault.get().is_none()
            && range.end.0 <= self.table.uncompressed_len()
            && self.table.covering(range).all(|span| self.is_open(span))
    }

    fn is_recorded(&self) -> bool {
        self.followers.recorders.load(Ordering::SeqCst) > 0
    }

    /// An image begins to record first reads, from now on.
    pub(crate) fn recording_begins(&self) {
        self.followers.recorders.fetch_add(1, Ordering::SeqCst);
        self.later(|layer| layer.tell_gone(0..layer.lives.count()));
    }

    /// An image has stopped to: what it would have been told of may be read past us.
    pub(crate) fn recording_ended(&self) {
        if self.followers.recorders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.tell_all_later();
        }
    }

    /// A span may have become one to be read past us.
    pub(super) fn tell_stands(&self, span: usize) {
        if self.is_open(span)
            && let Some(span) = self.table.spans().get(span)
        {
            self.tell_followers(|it| it.handle_stands(span.uncompressed.clone()));
        }
    }

    /// The same on a decoding thread, for those who answer reads.
    pub(super) fn tell_stands_later(&self, span: usize) {
        if self.is_recorded() && self.lives.of(span) == Life::InFile {
            self.later(move |layer| layer.tell_stands(span));
        }
    }

    /// All that may be read past us.
    pub(super) fn tell_all_later(&self) {
        self.later(|layer| {
            for range in layer.open_ranges() {
                layer.tell_followers(|it| it.handle_stands(range.clone()));
            }
        });
    }

    /// The spans that may be read past us, neighbours together.
    fn open_ranges(&self) -> Vec<Range<UncompressedOffset>> {
        let mut ranges: Vec<Range<UncompressedOffset>> = Vec::new();
        for (number, span) in self.table.spans().iter().enumerate() {
            if !self.is_open(number) {
                continue;
            }
            let Range { start, end } = span.uncompressed;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }

    pub(super) fn tell_gone(&self, spans: Range<usize>) {
        let spans = self.table.spans().get(spans).unwrap_or_default();
        if let [first, ..] = spans
            && let [.., last] = spans
        {
            let range = first.uncompressed.start..last.uncompressed.end;
            self.tell_followers(|it| it.handle_gone(range.clone()));
        }
    }

    fn tell_followers(&self, event: impl Fn(&dyn Follower)) {
        // Not told under the lock: it takes as long as the disk likes.
        let all = self.followers.all.read().clone();
        all.iter().filter_map(Weak::upgrade).for_each(|follower| event(&*follower));
    }

    /// Nobody waits for it: where decoding has no room for it, reads go on through us.
    fn later(&self, job: impl FnOnce(&Layer) + Send + 'static) {
        if self.followers.all.read().is_empty() {
            return;
        }
        let me = self.me.clone();
        let job = move |_: &mut _| {
            if let Some(layer) = me.upgrade() {
                job(&layer);
            }
        };
        if self.works.pool.submit(Priority::Background, 0, Box::new(job)).is_err() {
            tracing::debug!(layer = %self.digest, "reads of what is here go on through us");
        }
    }
}
