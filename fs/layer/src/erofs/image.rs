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
}
