//! Where zstd frames end, found without decoding them.

/// What is read next.
#[derive(Clone, Copy, Default)]
enum Field {
    #[default]
    Magic,
    SkippableLen,
    Descriptor,
    Block {
        checksum_len: u64,
    },
    /// This is no frame: nothing is known from here on.
    Lost,
}

impl Field {
    fn len(self) -> usize {
        match self {
            Self::Magic | Self::SkippableLen => 4,
            Self::Descriptor => 1,
            Self::Block { .. } => 3,
            Self::Lost => 0,
        }
    }
}

/// Goes from header to header through a blob that comes in any pieces.
#[derive(Default)]
pub(super) struct Walk {
    field: Field,
    /// Bytes of the field that have come.
    bytes: [u8; 4],
    filled: usize,
    /// Bytes to pass by before the field's next byte.
    skip: u64,
    /// Position behind all that was passed.
    at: u64,
}

impl Walk {
    /// The next bytes. `ended` is told where a frame ends, which may be further on than they reach.
    pub(super) fn go_on(&mut self, mut bytes: &[u8], mut ended: impl FnMut(u64)) {
        while !matches!(self.field, Field::Lost) {
            let skip = self.skip.min(bytes.len() as u64);
            (self.skip, self.at) = (self.skip - skip, self.at + skip);
            bytes = bytes.get(skip as usize..).unwrap_or_default();
            let Some((&byte, rest)) = bytes.split_first() else { return };
            (bytes, self.at) = (rest, self.at + 1);
            if let Some(to) = self.bytes.get_mut(self.filled) {
                *to = byte;
            }
            self.filled += 1;
            if self.filled == self.field.len() && self.pass_field() {
                ended(self.at + self.skip);
            }
        }
    }

    /// A field is complete; true if a frame ends behind what is skipped.
    fn pass_field(&mut self) -> bool {
        let filled = std::mem::take(&mut self.filled);
        let bytes = self.bytes.iter().take(filled).rev();
        let value = bytes.fold(0, |value, &byte| value << 8 | u32::from(byte));
        let (field, skip, is_end) = match self.field {
            Field::Magic if value == 0xfd2f_b528 => (Field::Descriptor, 0, false),
            Field::Magic if value & !0xf == 0x184d_2a50 => (Field::SkippableLen, 0, false),
            Field::SkippableLen => (Field::Magic, u64::from(value), true),
            Field::Descriptor => {
                let checksum_len = if value & 4 != 0 { 4 } else { 0 };
                (Field::Block { checksum_len }, header_rest(value), false)
            }
            // Reserved.
            Field::Block { .. } if value >> 1 & 3 == 3 => (Field::Lost, 0, false),
            Field::Block { checksum_len } => {
                let is_repeated_byte = value >> 1 & 3 == 1;
                let len = if is_repeated_byte { 1 } else { u64::from(value >> 3) };
                match value & 1 {
                    0 => (self.field, len, false),
                    _ => (Field::Magic, len + checksum_len, true),
                }
            }
            Field::Magic | Field::Lost => (Field::Lost, 0, false),
        };
        (self.field, self.skip) = (field, skip);
        is_end
    }
}

/// Bytes of a frame's header behind its descriptor (RFC 8878, §3.1.1.1.1).
fn header_rest(descriptor: u32) -> u64 {
    let is_single_segment = descriptor & 0x20 != 0;
    let window = u64::from(!is_single_segment);
    let dictionary = [0, 1, 2, 4].get(descriptor as usize & 3).copied().unwrap_or(0);
    let content = match descriptor >> 6 & 3 {
        0 => u64::from(is_single_segment),
        flag => 1 << flag,
    };
    window + dictionary + content
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn ends_of(blob: &[u8], piece_len: usize) -> Vec<u64> {
        let (mut walk, mut ends) = (Walk::default(), Vec::new());
        blob.chunks(piece_len).for_each(|piece| walk.go_on(piece, |end| ends.push(end)));
        ends
    }

    /// As its header may say or not say.
    fn frame(content: &[u8], has_size: bool, has_checksum: bool) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(has_checksum).unwrap();
        if has_size {
            encoder.set_pledged_src_size(Some(content.len() as u64)).unwrap();
        }
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

        #[test]
        fn it_finds_the_ends_of_all_frames(
            frames in prop::collection::vec((0..400_000_usize, 0..3_u8, any::<bool>(), any::<bool>()), 1..6),
            piece_len in 1..100_000_usize,
        ) {
            let (mut blob, mut ends) = (Vec::new(), Vec::new());
            for (len, kind, has_size, has_checksum) in frames {
                let content = (0..len).map(|at| match kind {
                    0 => 7,
                    1 => ((at * at) >> 7) as u8,
                    _ => (at.wrapping_mul(0x9e37_79b9) >> 13) as u8,
                });
                blob.extend(frame(&content.collect::<Vec<_>>(), has_size, has_checksum));
                ends.push(blob.len() as u64);
                blob.extend([0x5e, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
                ends.push(blob.len() as u64);
            }
            prop_assert_eq!(ends_of(&blob, piece_len), ends);
        }
    }

    #[test]
    fn what_is_no_frame_ends_the_walk() {
        let good = frame(b"content", true, true);
        let end = good.len() as u64;
        for bad in [&b"\x28\xb5\x2f\xfe"[..], b"\x28\xb5\x2f\xfd\x20\x07\x07\x00\x00", b"\0\0\0\0"]
        {
            let blob = [&good, bad, good.as_slice()].concat();
            assert_eq!(ends_of(&blob, 1), [end]);
        }
        // One that is cut off tells where it would end.
        assert_eq!(ends_of(&good[..good.len() - 2], 3), [end]);
    }
}
