//! Streams of whole blobs, from hosts that know no ranges: one request brings everything, and wants
//! are met as their bytes come by. The stream waits where nobody wants the next bytes, so a consumer
//! that reads in order costs a single pass.

use std::time::Instant;

use super::{Action, BlobId, Feed, Plan, Start, Stream, TransferId, WantId};
use crate::blob::Priority;

impl Plan {
    /// A stream stands at `position` and asks what to do; the answer is an `Action::Feed`.
    pub(crate) fn handle_hungry(&mut self, id: TransferId, position: u64, now: Instant) {
        if let Some(transfer) = self.transfers.get_mut(&id) {
            transfer.stream = Some(Stream { position, parked: Some(now) });
        }
    }

    /// True if the blob's host is known to answer ranges with everything.
    pub(crate) fn blob_is_whole(&self, id: BlobId) -> bool {
        self.blobs.get(&id).is_some_and(|blob| self.whole_hosts.contains_key(&blob.host))
    }

    pub(super) fn start_whole(
        &mut self,
        id: BlobId,
        priority: Priority,
        now: Instant,
    ) -> Option<Start> {
        // Not beside another stream; nor beside ranged requests that are about to fail, since the stream
        // would have passed their bytes by the time they are wanted again.
        if self.transfers.values().any(|transfer| transfer.blob == id) {
            return None;
        }
        let size = self.blobs.get(&id)?.size;
        let stream = Stream { position: 0, parked: None };
        let transfer = self.begin(id, priority, Vec::new(), Some(stream), now)?;
        Some(Start { id: transfer, blob: id, range: 0..size, whole: true, segments: Vec::new() })
    }

    /// Feed the streams that wait; true if there is an action now.
    pub(super) fn poll_streams(&mut self, now: Instant) -> bool {
        let waiting: Vec<(TransferId, u64, Instant)> = self
            .transfers
            .iter()
            .filter_map(|(&id, transfer)| {
                let stream = transfer.stream.filter(|_| transfer.outstanding.is_empty())?;
                Some((id, stream.position, stream.parked?))
            })
            .collect();
        let mut fed = false;
        for (id, position, since) in waiting {
            let idle = since + self.options.stream_idle <= now;
            let feed = match self.feed_at(id, position) {
                Some(feed) => feed,
                None if idle => Feed::Stop,
                None => continue,
            };
            if let Feed::Segment(want, range) = &feed {
                self.start_want(*want, now);
                self.note_segment(id, *want, range.clone());
            }
            if let Some(Stream { parked, .. }) =
                self.transfers.get_mut(&id).and_then(|transfer| transfer.stream.as_mut())
            {
                *parked = None;
            }
            self.actions.push_back(Action::Feed(id, feed));
            fed = true;
        }
        fed
    }

    /// What the stream shall do at `position`; nothing if it shall wait.
    fn feed_at(&self, id: TransferId, position: u64) -> Option<Feed> {
        let blob = self.blobs.get(&self.transfers.get(&id)?.blob)?;
        let mut ahead: Option<(WantId, std::ops::Range<u64>)> = None;
        let (mut urgent_ahead, mut urgent_behind, mut behind) = (false, false, false);
        for want_id in blob.wants() {
            let Some(want) = self.wants.get(&want_id) else { continue };
            let urgent = want.priority == Priority::OnDemand;
            if blob.first_gap(want).is_some_and(|gap| gap.start < position) {
                behind = true;
                urgent_behind |= urgent;
            }
            let Some(gap) = blob.first_gap_from(want, position) else { continue };
            urgent_ahead |= urgent;
            if ahead.as_ref().is_none_or(|(_, best)| gap.start < best.start) {
                ahead = Some((want_id, gap));
            }
        }
        if urgent_behind && !urgent_ahead {
            return Some(Feed::Stop);
        }
        match ahead {
            Some((want, gap)) if self.fits(want) => Some(Feed::Segment(want, gap)),
            Some(_) => None,
            None if behind => Some(Feed::Stop),
            None => None,
        }
    }

    fn note_segment(&mut self, id: TransferId, want: WantId, range: std::ops::Range<u64>) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        if let Some(blob) = self.blobs.get_mut(&transfer.blob) {
            blob.request(&range);
        }
        transfer.outstanding.push((want, range));
    }
}
