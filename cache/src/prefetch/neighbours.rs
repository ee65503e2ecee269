//! Which spans to expect behind those that were read: next ones after a miss, more while reads go on
//! in order. Pure.

use std::ops::Range;

/// Spans asked for behind a miss. Measured on five images: 4 beat 1 and 2 everywhere; 8 and 16
/// gained a little more only where much of the image is read.
const WIDTH_FIRST: usize = 4;
/// Spans asked for ahead of a reader that goes on in order: enough to fill 8 connections and some
/// cores with spans of 4 MiB.
const WIDTH_MAX: usize = 16;
/// Readers followed at once; the one not heard of for longest is forgotten.
const STREAMS_MAX: usize = 16;
/// Spans that a reader may skip and still count as going on in order.
const SKIP_MAX: usize = 2;

/// A reader that seems to go on in order.
#[derive(Clone, Copy, Debug)]
struct Stream {
    layer: usize,
    next: usize,
    width: usize,
}

/// Readers of an image, most recent last.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    streams: Vec<Stream>,
}

impl Neighbours {
    /// A span was read for the first time; returns the spans to expect (perhaps beyond the last).
    pub(crate) fn handle_touch(&mut self, layer: usize, span: usize, missed: bool) -> Range<usize> {
        let follows =
            |it: &Stream| it.layer == layer && (it.next..=it.next + SKIP_MAX).contains(&span);
        let known = self.streams.iter().rposition(follows).map(|at| self.streams.remove(at));
        let width = match known {
            Some(stream) => (stream.width * 2).min(WIDTH_MAX),
            None if missed => WIDTH_FIRST,
            // What came by a trace or in the background needs no guess of ours, but may be the
            // beginning of more.
            None => WIDTH_FIRST / 2,
        };
        if self.streams.len() == STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push(Stream { layer, next: span + 1, width });
        if known.is_none() && !missed { 0..0 } else { span + 1..span + 1 + width }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(touches: &[(usize, usize, bool)], expected: Range<usize>) {
        let mut neighbours = Neighbours::default();
        let last = touches
            .iter()
            .fold(0..0, |_, &(layer, span, missed)| neighbours.handle_touch(layer, span, missed));
        assert_eq!(last, expected, "{touches:?}");
    }

    #[test]
    fn widens_with_reads_in_order() {
        check(&[(0, 7, true)], 8..12);
        check(&[(0, 7, false)], 0..0);
        check(&[(0, 7, true), (0, 8, false)], 9..17);
        check(&[(0, 7, false), (0, 8, false)], 9..13);
        check(&[(0, 7, true), (0, 8, false), (0, 9, false), (0, 10, false)], 11..27);
        check(&[(0, 7, true), (1, 8, true)], 9..13);
        check(&[(0, 7, true), (0, 100, true), (0, 10, false)], 11..19);
        check(&[(0, 7, true), (0, 6, true)], 7..11);
    }

    #[test]
    fn follows_a_bounded_number_of_readers() {
        let mut neighbours = Neighbours::default();
        for span in 0..1000 {
            neighbours.handle_touch(0, span * 10, true);
        }
        assert_eq!(neighbours.streams.len(), STREAMS_MAX);
    }
}
