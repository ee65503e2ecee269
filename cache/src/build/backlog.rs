//! What has come of a blob and is not scanned yet: pieces, and who decodes which stretch of them.
//!
//! The scan takes stretches in order. Helpers take those behind, and always leave it the first that
//! nobody has: so it never waits for a stretch that it could have begun itself.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::ahead::Decoded;
use crate::deflate::Place;

/// Some bytes of a blob; all but the last are of one length.
pub(super) type Piece = Arc<Vec<u8>>;

/// How a blob is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of a piece.
    pub(super) piece_len: usize,
    /// Pieces of a stretch.
    pub(super) stretch_pieces: usize,
    /// Most stretches that helpers are at or have decoded before the scan arrives.
    pub(super) held_max: usize,
}

/// Blob bytes handed on at once.
pub(super) const PIECE_LEN: usize = 256 << 10;

impl Default for Shape {
    /// 1 MiB in 4 pieces: shorter stretches cost more searching and more unknown bytes, longer ones
    /// more memory, which is 12 MiB for each held one at worst.
    fn default() -> Self {
        Self { piece_len: PIECE_LEN, stretch_pieces: 4, held_max: 6 }
    }
}

impl Shape {
    pub(super) fn stretch_len(self) -> usize {
        self.piece_len * self.stretch_pieces
    }

    /// The stretch that a block belongs to.
    fn stretch_of(self, place: Place) -> usize {
        (place.in_bits() / 8) as usize / self.stretch_len()
    }
}

/// What helpers are to decode.
pub(super) struct Task {
    pub(super) stretch: usize,
    /// Its pieces, and one more if there is one.
    pub(super) pieces: Vec<Piece>,
    /// Position of the first one in the blob.
    pub(super) start: u64,
    /// Where the stretch ends.
    pub(super) end: u64,
}

/// How far a helper is.
pub(super) enum Progress {
    /// It looks for a block.
    Searching,
    /// It decodes from this block on.
    Found(Place),
    Done(Box<Decoded>),
    /// There is nothing to be had.
    Nothing,
}

enum Stretch {
    Free,
    InOrder,
    Helper(Progress),
}

/// What the scan finds where it arrives.
pub(super) enum Arrival<T> {
    /// It goes on.
    Goes,
    /// Somebody has decoded from here on.
    Decoded(T),
    /// Somebody is at it.
    Waits,
}

pub(super) struct Backlog {
    shape: Shape,
    pieces: VecDeque<Piece>,
    /// Number of the first of `pieces`.
    first_piece: usize,
    /// Those from the scan's on.
    stretches: VecDeque<Stretch>,
    /// Number of the first of `stretches`.
    first_stretch: usize,
    is_complete: bool,
}

impl Backlog {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            pieces: VecDeque::new(),
            first_piece: 0,
            stretches: VecDeque::from([Stretch::InOrder]),
            first_stretch: 0,
            is_complete: false,
        }
    }

    /// Bytes that wait, as whole stretches.
    pub(super) fn stretches(&self) -> usize {
        self.pieces.len() / self.shape.stretch_pieces
    }

    pub(super) fn push(&mut self, piece: Piece) {
        self.pieces.push_back(piece);
        let behind = self.first_piece + self.pieces.len();
        let count = behind.div_ceil(self.shape.stretch_pieces).saturating_sub(self.first_stretch);
        while self.stretches.len() < count {
            self.stretches.push_back(Stretch::Free);
        }
    }

    /// The blob has ended.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The piece in which byte `at` stands, and where; `None` if it has not come.
    pub(super) fn piece_at(&self, at: u64) -> Option<(Piece, usize)> {
        let at = at as usize;
        let index = (at / self.shape.piece_len).checked_sub(self.first_piece)?;
        let piece = self.pieces.get(index)?;
        let offset = at % self.shape.piece_len;
        (offset < piece.len()).then(|| (Arc::clone(piece), offset))
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// All pieces that are here.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    /// Where their bytes begin and end.
    pub(super) fn range(&self) -> Range<u64> {
        let start = self.first_piece * self.shape.piece_len;
        let last = self.pieces.back().map_or(0, |piece| piece.len());
        let len = self.pieces.len().saturating_sub(1) * self.shape.piece_len + last;
        start as u64..(start + len) as u64
    }

    /// Pieces with all bytes of a range that is here, and where it begins in the first of them.
    pub(super) fn pieces_of(&self, range: Range<u64>) -> (Vec<Piece>, usize) {
        let len = self.shape.piece_len;
        let first = range.start as usize / len;
        let count = (range.end as usize).div_ceil(len) - first;
        let pieces = self.pieces.iter().skip(first.saturating_sub(self.first_piece));
        (pieces.take(count).cloned().collect(), range.start as usize % len)
    }

    /// Forget a piece that ends at or before byte `at`, with the position of its end.
    pub(super) fn take_before(&mut self, at: u64) -> Option<(Piece, u64)> {
        let start = (self.first_piece * self.shape.piece_len) as u64;
        let end = start + self.pieces.front()?.len() as u64;
        if end > at {
            return None;
        }
        self.first_piece += 1;
        Some((self.pieces.pop_front()?, end))
    }

    /// Stretches that a helper may take.
    pub(super) fn free_count(&self) -> usize {
        self.free().count()
    }

    /// The first of them, from now on its own.
    pub(super) fn claim(&mut self) -> Option<Task> {
        let stretch = self.free().next()?;
        let first = stretch * self.shape.stretch_pieces;
        let pieces = self.pieces.iter().skip(first - self.first_piece);
        let pieces = pieces.take(self.shape.stretch_pieces + 1).cloned().collect();
        self.set(stretch, Stretch::Helper(Progress::Searching));
        let len = self.shape.stretch_len() as u64;
        let start = stretch as u64 * len;
        Some(Task { stretch, pieces, start, end: start + len })
    }

    /// Free ones but for the first, as far as they and a piece more have come and may be held.
    fn free(&self) -> impl Iterator<Item = usize> {
        let behind = self.first_piece + self.pieces.len();
        let needed = |stretch: &usize| (stretch + 1) * self.shape.stretch_pieces + 1;
        let numbered = (self.first_stretch..).zip(&self.stretches);
        let is_held = |stretch: &&Stretch| matches!(stretch, Stretch::Helper(progress) if !matches!(progress, Progress::Nothing));
        let held = self.stretches.iter().filter(is_held).count();
        let free = numbered.filter(|(_, it)| matches!(it, Stretch::Free)).map(|(number, _)| number);
        // A long block may have brought the scan further than it says.
        let is_there = |stretch: &usize| stretch * self.shape.stretch_pieces >= self.first_piece;
        free.skip(1)
            .filter(is_there)
            .take_while(move |stretch| self.is_complete || needed(stretch) <= behind)
            .take(self.shape.held_max.saturating_sub(held))
    }

    /// A helper says how far it is; `false` if nobody wants to know.
    pub(super) fn tell(&mut self, stretch: usize, progress: Progress) -> bool {
        let is_wanted = self.is_wanted(stretch);
        if is_wanted {
            self.set(stretch, Stretch::Helper(progress));
        }
        is_wanted
    }

    /// Whether what a helper does with a stretch is of use.
    pub(super) fn is_wanted(&self, stretch: usize) -> bool {
        matches!(self.get(stretch), Some(Stretch::Helper(_)))
    }

    /// The scan is at a block; `is_behind_window` if it knows all that may be referred to.
    pub(super) fn arrive(&mut self, place: Place, is_behind_window: bool) -> Arrival<Box<Decoded>> {
        let stretch = self.shape.stretch_of(place);
        while self.first_stretch < stretch && self.stretches.pop_front().is_some() {
            self.first_stretch += 1;
        }
        let goes_on = match self.get(stretch) {
            Some(Stretch::Helper(Progress::Searching)) => return Arrival::Waits,
            Some(Stretch::Helper(Progress::Found(found))) => {
                if *found == place && is_behind_window {
                    return Arrival::Waits;
                }
                found.in_bits() > place.in_bits()
            }
            Some(Stretch::Helper(Progress::Done(decoded))) => {
                if decoded.start == place && is_behind_window {
                    let Some(Stretch::Helper(Progress::Done(decoded))) =
                        self.set(stretch, Stretch::InOrder)
                    else {
                        unreachable!("it was looked at")
                    };
                    return Arrival::Decoded(decoded);
                }
                decoded.start.in_bits() > place.in_bits()
            }
            // One that has not come yet is made when it does.
            None => true,
            Some(Stretch::Free | Stretch::InOrder | Stretch::Helper(Progress::Nothing)) => false,
        };
        if !goes_on {
            self.set(stretch, Stretch::InOrder);
        }
        Arrival::Goes
    }

    fn get(&self, stretch: usize) -> Option<&Stretch> {
        self.stretches.get(stretch.checked_sub(self.first_stretch)?)
    }

    fn set(&mut self, stretch: usize, value: Stretch) -> Option<Stretch> {
        let stretch = self.stretches.get_mut(stretch.checked_sub(self.first_stretch)?)?;
        Some(std::mem::replace(stretch, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stretches of 20 bytes.
    fn backlog(pieces: usize) -> Backlog {
        let shape = Shape { piece_len: 10, stretch_pieces: 2, held_max: 3 };
        let mut backlog = Backlog::new(shape);
        (0..pieces).for_each(|_| backlog.push(Arc::new(vec![0; 10])));
        backlog
    }

    fn at(byte: u64) -> Place {
        Place { at: byte, bits: 0 }
    }

    fn decoded(start: u64, end: u64) -> Progress {
        let (unknown, known) = (Vec::new(), Vec::new());
        let blocks = vec![(at(end), 100)];
        Progress::Done(Box::new(Decoded { start: at(start), blocks, before: 0, unknown, known }))
    }

    fn claimed(backlog: &mut Backlog) -> Vec<usize> {
        std::iter::from_fn(|| backlog.claim().map(|task| task.stretch)).collect()
    }

    #[test]
    fn the_first_free_stretch_is_left_to_the_scan() {
        let mut backlog = backlog(8);
        // The last has no piece behind it yet.
        assert_eq!(claimed(&mut backlog), [2]);
        backlog.push(Arc::new(vec![0; 10]));
        assert_eq!(claimed(&mut backlog), [3]);
        backlog.push(Arc::new(vec![0; 3]));
        assert_eq!(claimed(&mut backlog), [0; 0]);
        backlog.complete();
        assert_eq!(claimed(&mut backlog), [4]);
        assert!(matches!(backlog.arrive(at(21), true), Arrival::Goes));
        assert!(!backlog.is_wanted(1) && backlog.is_wanted(2));
    }

    #[test]
    fn helpers_hold_no_more_than_the_scan_will_soon_take() {
        let mut backlog = backlog(17);
        assert_eq!(claimed(&mut backlog), [2, 3, 4]);
        assert!(backlog.tell(3, Progress::Nothing));
        assert!(backlog.tell(2, decoded(40, 60)));
        assert_eq!(claimed(&mut backlog), [5]);
        assert!(matches!(backlog.arrive(at(40), true), Arrival::Decoded(_)));
        assert_eq!(claimed(&mut backlog), [7]);
    }

    #[test]
    fn what_is_decoded_counts_only_where_it_begins() {
        for (place, is_behind_window, is_taken) in
            [(41, true, false), (45, true, true), (45, false, false), (46, true, false)]
        {
            let mut backlog = backlog(9);
            assert_eq!(
                backlog.claim().map(|task| (task.stretch, task.start, task.end)),
                Some((2, 40, 60))
            );
            assert!(matches!(backlog.arrive(at(40), true), Arrival::Waits));
            assert!(backlog.tell(2, decoded(45, 61)));
            let arrival = backlog.arrive(at(place), is_behind_window);
            assert_eq!(matches!(arrival, Arrival::Decoded(_)), is_taken, "at {place}");
            // One that has not been passed is still of use.
            assert_eq!(backlog.is_wanted(2), place < 45, "at {place}");
        }
    }

    #[test]
    fn a_guess_that_the_scan_has_passed_is_not_waited_for() {
        let mut backlog = backlog(9);
        assert_eq!(claimed(&mut backlog), [2, 3]);
        assert!(backlog.tell(2, Progress::Found(at(44))));
        assert!(matches!(backlog.arrive(at(43), true), Arrival::Goes));
        assert!(matches!(backlog.arrive(at(44), true), Arrival::Waits));
        assert!(matches!(backlog.arrive(at(47), true), Arrival::Goes));
        assert!(!backlog.tell(2, decoded(44, 60)));
        assert!(backlog.tell(3, Progress::Nothing));
        assert!(matches!(backlog.arrive(at(60), true), Arrival::Goes));
    }

    #[test]
    fn pieces_go_once_they_are_passed() {
        let mut backlog = backlog(3);
        assert_eq!(backlog.piece_at(15).map(|(_, offset)| offset), Some(5));
        assert!(backlog.piece_at(30).is_none());
        assert!(backlog.take_before(9).is_none());
        assert_eq!(backlog.take_before(10).map(|(_, end)| end), Some(10));
        assert_eq!(backlog.take_before(30).map(|(_, end)| end), Some(20));
        assert!(backlog.piece_at(19).is_none());
        assert_eq!(backlog.piece_at(20).map(|(_, offset)| offset), Some(0));
    }
}
