//! Checksums of spans as they come out, by which a layer file's bytes are believed later.

use std::collections::VecDeque;

use spanfs_layer::UncompressedOffset;

use crate::crc::Crc32;

/// What the layer file must hold between one restart point and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanSum {
    /// Where the span begins in the tar.
    pub start: UncompressedOffset,
    /// CRC-32 of all that decompresses from it, also behind the archive's end.
    pub crc: u32,
}

/// Sums up a tar between restart points.
#[derive(Default)]
pub(super) struct SpanSums {
    /// Spans that begin where bytes have not come yet.
    starts: VecDeque<u64>,
    /// Bytes so far.
    at: u64,
    current: Option<(u64, Crc32)>,
    done: Vec<SpanSum>,
}

impl SpanSums {
    /// A span begins at `at`, not before what has come.
    pub(super) fn begin(&mut self, at: u64) {
        assert!(at >= self.at, "a span is known before its bytes pass");
        self.starts.push_back(at);
    }

    /// The next bytes.
    pub(super) fn update(&mut self, mut content: &[u8]) {
        while let Some(start) = self.starts.front().copied() {
            let before = usize::try_from(start - self.at).unwrap_or(usize::MAX);
            let Some((now, behind)) = content.split_at_checked(before) else { break };
            self.add(now);
            self.end();
            self.starts.pop_front();
            self.current = Some((start, Crc32::new()));
            content = behind;
        }
        self.add(content);
    }

    fn add(&mut self, content: &[u8]) {
        if let Some((_, crc)) = &mut self.current {
            crc.update(content);
        }
        self.at += content.len() as u64;
    }

    fn end(&mut self) {
        let sum = |(start, crc): (u64, Crc32)| SpanSum {
            start: UncompressedOffset(start),
            crc: crc.sum(),
        };
        self.done.extend(self.current.take().map(sum));
    }

    /// Nothing more comes.
    pub(super) fn finish(mut self) -> Vec<SpanSum> {
        self.end();
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crc::crc32;

    #[test]
    fn sums_are_those_between_starts_however_the_bytes_come() {
        let content: Vec<u8> = (0..100).collect();
        for piece_len in [1, 7, 10, 100] {
            let mut sums = SpanSums::default();
            let mut starts = [0, 10, 35, 100].into_iter().peekable();
            for (number, piece) in content.chunks(piece_len).enumerate() {
                let end = (number * piece_len + piece.len()) as u64;
                while let Some(start) = starts.next_if(|start| *start <= end) {
                    sums.begin(start);
                }
                sums.update(piece);
            }
            let expected =
                [0..10, 10..35, 35..100, 100..100].map(|span: std::ops::Range<usize>| SpanSum {
                    start: UncompressedOffset(span.start as u64),
                    crc: crc32(&content[span]),
                });
            assert_eq!(sums.finish(), expected, "pieces of {piece_len}");
        }
    }
}
