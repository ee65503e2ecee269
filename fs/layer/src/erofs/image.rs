//! The bytes of an image while they are written, in any order.

use alloc::vec::Vec;

pub(super) struct Image {
    pub(super) bytes: Vec<u8>,
}

impl Image {
    /// Zeros of the image's final length.
    pub(super) fn new(len: usize) -> Self {
        Self { bytes: alloc::vec![0; len] }
    }

    /// Writes at an offset. The layout came first: a place outside the image is our mistake.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        let place = self.bytes.get_mut(at..).and_then(|tail| tail.get_mut(..bytes.len()));
        match place {
            Some(place) => place.copy_from_slice(bytes),
            None => unreachable!("{} bytes at {at} of an image too short for them", bytes.len()),
        }
    }

    /// What tells its bytes from those of other images, as long as nobody wants them confused. A digest
    /// of all of them would take longer than all else about a large image.
    pub(super) fn fold(&self) -> [u8; FOLD_LEN] {
        let mut lanes = [0_u64; FOLD_LEN / 8];
        let words = self.bytes.as_chunks::<8>().0.as_chunks::<{ FOLD_LEN / 8 }>().0;
        for piece in words {
            for (lane, word) in lanes.iter_mut().zip(piece) {
                // As xxHash does.
                let word = u64::from_le_bytes(*word).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
                *lane = lane.wrapping_add(word).rotate_left(31).wrapping_mul(0x9E37_79B1_85EB_CA87);
            }
        }
        let mut folded = [0; FOLD_LEN];
        for (to, lane) in folded.as_chunks_mut().0.iter_mut().zip(lanes) {
            *to = lane.to_le_bytes();
        }
        folded
    }
}

/// Divides the length of every image.
const FOLD_LEN: usize = 32;
