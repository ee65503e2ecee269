//! Decoding zstd frames ahead of the scan.
//!
//! Where a frame ends can be told from the headers of its blocks (RFC 8878, §3.1.1), and it refers to nothing
//! before it. So helpers decode runs of whole frames into bytes, and the scan takes them over where it comes
//! to the first of them. Whatever a helper fails at is left to the scan, whose verdict alone counts.

use std::collections::VecDeque;

use super::backlog::{Arrival, Backlog, Piece, Shape};
use super::spent::Spent;
use crate::inflate::Decoder;

mod walk;

use walk::Walk;

/// Longest run that is worth waiting for, in stretches.
pub(super) const RUN_STRETCHES_MAX: usize = 2;
/// Most that comes out of a run, and what mostly does.
const OUTPUT_MAX: usize = 8 << 20;
const OUTPUT_LEN: usize = 2 << 20;

/// Where buffers come from and go to.
pub(super) struct Buffers {
    pub(super) compressed: Spent<u8>,
    pub(super) decoded: Spent<u8>,
}

/// A run of frames on its way to the scan.
pub(super) struct DecodedRun {
    /// Some of which may be left over.
    pub(super) bytes: Vec<u8>,
    /// Where each frame ends in the blob, and in the bytes.
    pub(super) ends: Vec<(u64, usize)>,
}

enum Life {
    Free,
    Taken,
    Done(DecodedRun),
    /// A helper failed.
    Nothing,
}

struct Run {
    start: u64,
    /// Where its frames end.
    ends: Vec<u64>,
    life: Life,
}

impl Run {
    fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(self.start)
    }
}

/// What a helper is to decode.
pub(super) struct RunTask {
    pub(super) start: u64,
    ends: Vec<u64>,
    pieces: Vec<Piece>,
    /// Where the run begins in the first piece.
    skip: usize,
}

/// The frames of a blob that the scan has not come to.
pub(super) struct Frames {
    /// Bytes of a run from which on it takes no further frame: half a stretch.
    run_len: u64,
    run_len_max: u64,
    /// Most runs that helpers are at or have decoded before the scan arrives.
    held_max: usize,
    walk: Walk,
    runs: VecDeque<Run>,
    /// Where the frames begin that are in no run yet, and where they end.
    open_start: u64,
    open: VecDeque<u64>,
    /// The frame that the scan is in begins here.
    scan_at: u64,
}

impl Frames {
    pub(super) fn new(shape: Shape) -> Self {
        let stretch_len = shape.stretch_len();
        Self {
            run_len: stretch_len as u64 / 2,
            run_len_max: (stretch_len * RUN_STRETCHES_MAX) as u64,
            held_max: shape.held_max,
            walk: Walk::default(),
            runs: VecDeque::new(),
            open_start: 0,
            open: VecDeque::new(),
            scan_at: 0,
        }
    }

    /// The next bytes.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let mut ends = Vec::new();
        self.walk.go_on(piece, |end| ends.push(end));
        for end in ends {
            if self.open.is_empty() && self.open_start <= self.scan_at {
                // The scan is in that one already.
                self.open_start = end;
                continue;
            }
            self.open.push_back(end);
            if end - self.open_start >= self.run_len {
                self.close();
            }
        }
    }

    /// What is gathered is a run: always so at the end of the blob.
    pub(super) fn close(&mut self) {
        let ends = Vec::from(std::mem::take(&mut self.open));
        if let Some(&end) = ends.last() {
            self.runs.push_back(Run { start: self.open_start, ends, life: Life::Free });
            self.open_start = end;
        }
    }

    /// The scan is at a frame.
    pub(super) fn arrive(&mut self, at: u64) -> Arrival<DecodedRun> {
        self.scan_at = at;
        while self.runs.front().is_some_and(|run| run.start < at) {
            self.runs.pop_front();
        }
        while self.open_start <= at
            && let Some(end) = self.open.pop_front()
        {
            self.open_start = end;
        }
        match self.runs.front() {
            Some(run) if run.start == at && matches!(run.life, Life::Taken) => {
                return Arrival::Waits;
            }
            Some(run) if run.start == at => {}
            _ => return Arrival::Goes,
        }
        match self.runs.pop_front().map(|run| run.life) {
            Some(Life::Done(run)) => Arrival::Decoded(run),
            _ => Arrival::Goes,
        }
    }

    /// Runs that have come and that nobody has begun, as far as they may be held.
    fn free(&self, backlog: &Backlog) -> impl Iterator<Item = usize> {
        let here = backlog.range();
        let is_held = |run: &&Run| matches!(run.life, Life::Taken | Life::Done(_));
        let held = self.runs.iter().filter(is_held).count();
        let is_free = move |run: &Run| {
            let is_here = run.start >= here.start && run.end() <= here.end;
            is_here && matches!(run.life, Life::Free) && run.end() - run.start <= self.run_len_max
        };
        let numbered = self.runs.iter().enumerate();
        let free = numbered.filter(move |(_, run)| is_free(run)).map(|(index, _)| index);
        free.take(self.held_max.saturating_sub(held))
    }

    pub(super) fn free_count(&self, backlog: &Backlog) -> usize {
        self.free(backlog).count()
    }

    /// The first of them, from now on its taker's own.
    pub(super) fn claim(&mut self, backlog: &Backlog) -> Option<RunTask> {
        let index = self.free(backlog).next()?;
        let run = self.runs.get_mut(index)?;
        run.life = Life::Taken;
        let (pieces, skip) = backlog.pieces_of(run.start..run.end());
        Some(RunTask { start: run.start, ends: run.ends.clone(), pieces, skip })
    }

    /// A helper is done with a run, which the scan may have passed.
    pub(super) fn tell(&mut self, start: u64, decoded: Option<DecodedRun>) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.start == start) {
            run.life = decoded.map_or(Life::Nothing, Life::Done);
        }
    }
}

impl RunTask {
    /// What a helper does, in buffers of `spent`.
    pub(super) fn decode(self, decoder: &mut Decoder, spent: &Buffers) -> Option<DecodedRun> {
        let Self { start, ends, pieces, mut skip } = self;
        let len = (ends.last()? - start) as usize;
        let mut data = spent.compressed.take(0);
        for piece in &pieces {
            let piece = piece.get(std::mem::take(&mut skip)..).unwrap_or_default();
            let wanted = (len - data.len()).min(piece.len());
            data.extend_from_slice(piece.get(..wanted).unwrap_or_default());
        }
        drop(pieces);
        let mut bytes = spent.decoded.take(OUTPUT_LEN);
        let (mut rest, mut from, mut filled) = (data.as_slice(), start, 0);
        let frames = ends.into_iter().map(|end| {
            let (frame, behind) = rest.split_at_checked((end - from) as usize)?;
            (rest, from) = (behind, end);
            filled = decoder.inflate_frame(frame, &mut bytes, filled, OUTPUT_MAX)?;
            Some((end, filled))
        });
        let ends = frames.collect::<Option<Vec<_>>>();
        spent.compressed.give(data);
        Some(DecodedRun { ends: ends?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// An empty frame, skippable, of `len` bytes.
    fn frame(len: usize) -> Vec<u8> {
        let header = [0x184d_2a50_u32.to_le_bytes(), (len as u32 - 8).to_le_bytes()].concat();
        [header, vec![0; len - 8]].concat()
    }

    fn come(lens: &[usize]) -> (Frames, Backlog) {
        let blob = lens.iter().flat_map(|&len| frame(len)).collect::<Vec<_>>();
        let shape = Shape::default();
        let (mut frames, mut backlog) = (Frames::new(shape), Backlog::new(shape));
        for piece in blob.chunks(shape.piece_len) {
            frames.push(piece);
            backlog.push(Arc::new(piece.to_vec()));
        }
        (frames, backlog)
    }

    const SHORT: usize = 300 << 10;
    const LONG: usize = 600 << 10;

    #[test]
    fn runs_have_whole_frames_and_the_first_frame_is_the_scans() {
        let (mut frames, backlog) = come(&[SHORT, SHORT, SHORT, LONG, SHORT]);
        let task = frames.claim(&backlog).unwrap();
        assert_eq!((task.start as usize, task.ends.len()), (SHORT, 2));
        let task = frames.claim(&backlog).unwrap();
        assert_eq!((task.start as usize, task.ends.len()), (3 * SHORT, 1));
        assert!(frames.claim(&backlog).is_none(), "the blob may go on");
        frames.close();
        assert_eq!(frames.claim(&backlog).unwrap().start as usize, 3 * SHORT + LONG);
    }

    #[test]
    fn the_scan_takes_what_is_done_waits_for_what_is_begun_and_leaves_the_rest() {
        let (mut frames, backlog) = come(&[SHORT, LONG, LONG, LONG, LONG, SHORT]);
        let starts = [0, 1, 2, 3].map(|count| (SHORT + count * LONG) as u64);
        for start in &starts[..3] {
            assert_eq!(frames.claim(&backlog).unwrap().start, *start);
        }
        frames.tell(starts[0], Some(DecodedRun { bytes: Vec::new(), ends: Vec::new() }));
        frames.tell(starts[1], None);
        assert!(matches!(frames.arrive(starts[0]), Arrival::Decoded(_)));
        assert!(matches!(frames.arrive(starts[1]), Arrival::Goes));
        assert!(matches!(frames.arrive(starts[2]), Arrival::Waits));
        // It is in the fourth now, which nobody else begins.
        assert!(matches!(frames.arrive(starts[3]), Arrival::Goes));
        assert!(frames.claim(&backlog).is_none());
        frames.close();
        assert_eq!(frames.claim(&backlog).unwrap().start as usize, SHORT + 4 * LONG);
    }

    #[test]
    fn runs_that_are_gone_in_part_are_not_begun() {
        let (mut frames, mut backlog) = come(&[SHORT, LONG, LONG]);
        assert!(backlog.take_before(SHORT as u64).is_some());
        while backlog.take_before((SHORT + LONG) as u64 - 1).is_some() {}
        assert_eq!(frames.claim(&backlog).unwrap().start as usize, SHORT + LONG);
    }
}
