//! A layer that no zTOC can express: its tar in a finished local file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use spanfs_layer::{Digest, UncompressedOffset};

use super::kept::{self, Found};
use crate::cache::claim::{self, Claim};
use crate::cache::directory::PART;
use crate::layer::open::{CONDEMNED, INDEX, JOURNAL, LAYER, SPANS, TAIL, ZTOC, remove_if_there};
use crate::layer_file::file_len;
use crate::{CacheError, Content, ReadError, ReadReply, Role};

/// A layer whose every byte is in a local file that was checked against its digests.
///
/// Whoever holds it keeps its file from eviction.
#[derive(Debug)]
pub struct LocalLayer {
    digest: Digest,
    claim: Claim,
    role: Role,
    file: File,
    len: u64,
}

impl LocalLayer {
    pub(super) fn new(digest: Digest, claim: Claim, role: Role, file: File, len: u64) -> Self {
        Self { digest, claim, role, file, len }
    }

    /// Digest of the compressed blob.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The layer file.
    pub fn layer_path(&self) -> std::path::PathBuf {
        self.claim.file(LAYER)
    }
}

/// Make the part file the layer file, and note it if it is to be found again.
pub(super) fn keep(
    digest: Digest,
    claim: Claim,
    role: Role,
    part: File,
    diff_id: Digest,
    found: &Found,
) -> Result<LocalLayer, CacheError> {
    let Found::Never { uncompressed_len, .. } = found else {
        unreachable!("a layer with a zTOC is kept with its spans");
    };
    let len = file_len(*uncompressed_len);
    let commit = || -> io::Result<()> {
        part.set_len(len)?;
        part.sync_all()?;
        for name in [JOURNAL, ZTOC, SPANS, TAIL, INDEX, CONDEMNED] {
            remove_if_there(&claim.file(name))?;
        }
        std::fs::rename(claim.file(PART), claim.file(LAYER))?;
        match role {
            Role::Owner => kept::note(&claim, diff_id, found),
            Role::Reader | Role::Private => Ok(()),
        }
    };
    if let Err(error) = commit() {
        for name in [PART, LAYER] {
            drop(remove_if_there(&claim.file(name)));
        }
        return Err(CacheError::storage("keeping the layer in", claim.path())(error));
    }
    Ok(LocalLayer::new(digest, claim, role, part, len))
}

impl Content for LocalLayer {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        let left = self.len.saturating_sub(offset.0);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..len).unwrap_or_default();
        self.file.read_exact_at(buffer, offset.0).map_err(|error| {
            ReadError::Storage(format!("layer file of {} at {offset}: {error}", self.digest))
        })?;
        Ok(Some(len))
    }

    fn fill(&self, _range: Range<UncompressedOffset>, reply: ReadReply) {
        reply(Ok(()));
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl Drop for LocalLayer {
    fn drop(&mut self) {
        if self.role == Role::Private
            && let Err(error) = claim::remove_directory(self.claim.path())
        {
            tracing::warn!(layer = %self.digest, %error, "private copy of a layer stays behind");
        }
    }
}
