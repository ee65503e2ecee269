//! The port between a layer's bytes and those who show them.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Weak;

use spanfs_layer::UncompressedOffset;

/// Where the answer to a read that missed goes: called exactly once, perhaps on another thread.
///
/// On success the bytes stand in the layer file and a [`Content::read_present`] of the same range
/// returns them; so a miss moves no byte through this channel.
pub type ReadReply = Box<dyn FnOnce(Result<(), ReadError>) + Send>;

/// Why bytes of a layer can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The span could not be fetched; a later read tries again.
    #[error("{0}")]
    Unavailable(String),
    /// The layer's bytes are not what its digests promise: it is not served any more.
    #[error("{0}")]
    Corrupt(String),
    /// The disk refused.
    #[error("{0}")]
    Storage(String),
}

/// The uncompressed tar of one layer, as far as it is there: what a front shows.
///
/// Implemented by a layer whose spans arrive on demand, and by a finished local file.
pub trait Content: Send + Sync {
    /// Length of the layer file in bytes, a multiple of 512.
    fn len(&self) -> u64;

    /// True if there is no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Read at `offset` without waiting for the network: fills `buffer` wholly, or as far as the
    /// content reaches, and returns the count; `None` if any byte of it is missing.
    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError>;

    /// Make a range present: fetch, verify and inflate what is missing, then reply.
    fn fill(&self, range: Range<UncompressedOffset>, reply: ReadReply);

    /// The layer file, if all of a range is present there, to be read without a copy. What stands in it
    /// stays.
    fn present_file(&self, _range: Range<UncompressedOffset>) -> Option<BorrowedFd<'_>> {
        None
    }

    /// For the log: what a range that somebody waits for is made of, and how far that is.
    fn describe(&self, range: Range<UncompressedOffset>) -> String {
        format!("bytes {} to {}", range.start.0, range.end.0)
    }

    /// The layer file, if every byte of it is present and verified, so that it may be shown directly.
    fn complete_file(&self) -> Option<BorrowedFd<'_>>;

    /// The layer file, however much of it is there, if it is one for as long as this lives. What of it
    /// may be read, [`Self::stands`] says.
    fn layer_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether all of a range stands in the layer file, for everybody to read there without us.
    fn stands(&self, _range: Range<UncompressedOffset>) -> bool {
        false
    }

    /// Have somebody told of what [`Self::stands`] in the layer file: what does already, and what comes.
    fn follow(&self, _follower: Weak<dyn Follower>) {}
}

/// Somebody who reads a layer file past us.
///
/// Told from any thread, of different ranges at once, and perhaps late: what is true now
/// [`Content::stands`] knows, which changes before anybody is told.
pub trait Follower: Send + Sync {
    /// All of a range stands in the layer file.
    fn handle_stands(&self, range: Range<UncompressedOffset>);

    /// Some of a range that stood there does not any more, or is not to be read without us for a while.
    fn handle_gone(&self, range: Range<UncompressedOffset>);
}
