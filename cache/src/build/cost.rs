//! Doors for benchmarks: what parts of a pass over a gzip blob cost the calling thread.

use std::sync::Arc;
use std::time::Duration;

use spanfs_layer::ztoc::WINDOW_LEN;

use super::ahead::{UNKNOWN_LEN, decode};
use super::backlog::Shape;
use super::feed::Feed;
use super::output::BUFFER_LEN;
use crate::deflate::{Event, Inflate, Meaning};

/// Inflate in order, and do nothing else; the bytes that came out of a sound blob.
pub fn inflate(blob: &[u8]) -> u64 {
    let (mut decoder, mut len) = (Inflate::new(), 0);
    let (mut buffer, mut filled) = (vec![0_u8; BUFFER_LEN], WINDOW_LEN);
    for mut input in blob.chunks(Shape::default().piece_len) {
        loop {
            if filled == BUFFER_LEN {
                buffer.copy_within(BUFFER_LEN - WINDOW_LEN.., 0);
                filled = WINDOW_LEN;
            }
            let from = filled;
            let event = decoder.step(&mut input, &mut buffer, &mut filled);
            len += (filled - from) as u64;
            if matches!(event, Ok(Event::NeedsInput) | Err(_)) {
                break;
            }
        }
    }
    len
}

/// What helpers cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ahead {
    /// Bytes that they decoded, of which `unknown_len` as symbols that may be unknown.
    pub len: u64,
    /// See `len`.
    pub unknown_len: u64,
    /// Time by the clock to decode them.
    pub decoding: Duration,
    /// Time to replace the unknown ones, which is the scan's work.
    pub replacing: Duration,
}

/// Decode what helpers may: all but the first two stretches.
pub fn ahead(blob: &[u8], clock: &dyn Fn() -> Duration) -> Ahead {
    let shape = Shape { held_max: usize::MAX, ..Shape::default() };
    let feed = Feed::new(shape);
    feed.fill(blob.chunks(shape.piece_len).map(|piece| Arc::new(piece.to_vec())));
    let meaning = Meaning::behind(&[0; WINDOW_LEN]);
    let (mut cost, mut room) = (Ahead::default(), vec![0; UNKNOWN_LEN - WINDOW_LEN]);
    while let Some(task) = feed.claim() {
        let start = clock();
        let decoded = decode(&task, &feed.rooms, |_| true);
        cost.decoding += clock() - start;
        let Some(decoded) = decoded else { continue };
        let len = decoded.end().1;
        cost.len += len;
        let mut left = len;
        let start = clock();
        for symbols in decoded.unknown.iter().filter_map(|room| room.get(WINDOW_LEN..)) {
            let count = symbols.len().min(left as usize);
            let symbols = symbols.get(..count).unwrap_or_default();
            meaning.put(symbols, room.get_mut(..count).unwrap_or_default());
            left -= count as u64;
        }
        cost.replacing += clock() - start;
        cost.unknown_len += len - left;
        feed.rooms.take_back(decoded);
    }
    cost
}
