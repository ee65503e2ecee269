//! Decoding a stretch of a gzip blob before anybody knows what stands in front of it.
//!
//! Begins at what looks like a block, behind a window of unknown bytes, which are copied as numbers
//! of their places. As soon as a whole window is known, it goes on in bytes. Whether the guess was
//! right shows when the scan arrives: at the same bit, the same bytes follow.

use spanfs_layer::ztoc::WINDOW_LEN;

use super::backlog::Task;
use super::output::BUFFER_LEN;
use super::spent::Spent;
use crate::deflate::{Event, Inflate, Place, Symbol, find_block, is_known, unknown_window};

/// A stretch, decoded from a block in it to a block behind it, or as far as it was of use.
pub(super) struct Decoded {
    pub(super) start: Place,
    /// Where further blocks begin, and how much came out before. The last is where it ends.
    pub(super) blocks: Vec<(Place, u64)>,
    /// The byte before the end, in which the end's bits are.
    pub(super) before: u8,
    /// What came out, in buffers with windows in front; all but the last are full.
    pub(super) unknown: Vec<Vec<u16>>,
    /// The same, once all was known.
    pub(super) known: Vec<Vec<u8>>,
}

impl Decoded {
    pub(super) fn end(&self) -> (Place, u64) {
        self.blocks.last().copied().unwrap_or((self.start, 0))
    }
}

/// Symbols behind a window of them: short, as they may turn into bytes at the end of each.
pub(super) const UNKNOWN_LEN: usize = WINDOW_LEN + (128 << 10);

/// Most that comes out of a stretch, in bytes of memory: twelve times a stretch of 1 MiB. What is
/// left of a stretch is the scan's.
const MEMORY_MAX: usize = 12 << 20;

/// Where buffers come from and go to.
pub(super) struct Rooms {
    pub(super) unknown: Spent<u16>,
    pub(super) known: Spent<u8>,
}

impl Rooms {
    pub(super) fn take_back(&self, decoded: Decoded) {
        decoded.unknown.into_iter().for_each(|room| self.unknown.give(room));
        decoded.known.into_iter().for_each(|room| self.known.give(room));
    }
}

/// Decode what `task` says. `tell` learns of each block from which that is tried, and says whether it
/// is still of use.
pub(super) fn decode(
    task: &Task,
    rooms: &Rooms,
    mut tell: impl FnMut(Option<Place>) -> bool,
) -> Option<Decoded> {
    let first = task.pieces.first()?;
    let mut from = 0;
    while let Some(bit) = find_block(first, from) {
        let start = Place::behind(8 * task.start + bit as u64);
        if !tell(Some(start)) {
            return None;
        }
        let decoded = Run::new(task, start)?.decode(rooms, &mut || tell(None));
        if !decoded.blocks.is_empty() {
            return Some(decoded);
        }
        rooms.take_back(decoded);
        from = bit + 1;
    }
    None
}

/// A try to decode.
struct Run<'a> {
    task: &'a Task,
    decoder: Inflate,
    start: Place,
    input: &'a [u8],
    /// Number of the piece behind `input`.
    next_piece: usize,
    /// Bytes that came out.
    len: u64,
    /// Bytes that they take meanwhile.
    memory: usize,
    blocks: Vec<(Place, u64)>,
}

impl<'a> Run<'a> {
    fn new(task: &'a Task, start: Place) -> Option<Self> {
        let first = task.pieces.first()?;
        let input = first.get((start.at - task.start) as usize..)?;
        let decoder = Inflate::inside(start, byte_before(task, start));
        let blocks = Vec::new();
        Some(Self { task, decoder, start, input, next_piece: 1, len: 0, memory: 0, blocks })
    }

    fn decode(mut self, rooms: &Rooms, is_of_use: &mut dyn FnMut() -> bool) -> Decoded {
        let room = behind(unknown_window(), rooms.unknown.take(UNKNOWN_LEN));
        let (unknown, goes_on) = self.fill_all(room, &rooms.unknown, is_known, is_of_use);
        let window = unknown.last().and_then(|room| room.get(UNKNOWN_LEN - WINDOW_LEN..));
        let window = window.unwrap_or_default().iter().map(|symbol| *symbol as u8);
        let known = match goes_on {
            true => {
                let room = behind(window, rooms.known.take(BUFFER_LEN));
                self.fill_all(room, &rooms.known, |_| false, is_of_use).0
            }
            false => Vec::new(),
        };
        let Self { task, start, blocks, .. } = self;
        let end = blocks.last().map_or(start, |(end, _)| *end);
        Decoded { start, blocks, before: byte_before(task, end), unknown, known }
    }

    /// Fill buffers, each behind the window of the one before, until one `is_enough` or there is no
    /// more; and whether there is more.
    fn fill_all<S: Symbol>(
        &mut self,
        mut room: Vec<S>,
        spent: &Spent<S>,
        is_enough: impl Fn(&[S]) -> bool,
        is_of_use: &mut dyn FnMut() -> bool,
    ) -> (Vec<Vec<S>>, bool) {
        let (len, mut full) = (room.len(), Vec::new());
        loop {
            self.memory += size_of_val(room.as_slice());
            let goes_on = self.fill(&mut room) && self.memory < MEMORY_MAX && is_of_use();
            let window = room.get(len - WINDOW_LEN..).unwrap_or_default();
            let ends = !goes_on || is_enough(window);
            let next = (!ends).then(|| behind(window.iter().copied(), spent.take(len)));
            full.push(room);
            match next {
                Some(next) => room = next,
                None => return (full, goes_on),
            }
        }
    }

    /// Fill a buffer behind its window; `false` if it was not filled, as there is no more.
    fn fill<S: Symbol>(&mut self, buffer: &mut [S]) -> bool {
        let mut filled = WINDOW_LEN;
        loop {
            let from = filled;
            let event = self.decoder.step(&mut self.input, buffer, &mut filled);
            self.len += (filled - from) as u64;
            match event {
                Ok(Event::NeedsRoom) => return true,
                Ok(Event::NeedsInput) => {
                    let Some(piece) = self.task.pieces.get(self.next_piece) else { return false };
                    self.input = piece;
                    self.next_piece += 1;
                }
                Ok(Event::Block(place)) => {
                    self.blocks.push((place, self.len));
                    if place.in_bits() >= 8 * self.task.end {
                        return false;
                    }
                }
                // The scan will see what it is.
                Ok(Event::End { .. }) | Err(_) => return false,
            }
        }
    }
}

/// A buffer that begins with `window`.
fn behind<S>(window: impl Iterator<Item = S>, mut room: Vec<S>) -> Vec<S> {
    room.iter_mut().zip(window.take(WINDOW_LEN)).for_each(|(to, symbol)| *to = symbol);
    room
}

/// The byte in which a block's first bits are.
fn byte_before(task: &Task, place: Place) -> u8 {
    let mut offset = place.at.saturating_sub(task.start + 1) as usize;
    for piece in &task.pieces {
        match piece.get(offset) {
            Some(byte) => return *byte,
            None => offset -= piece.len(),
        }
    }
    0
}
