//! Short cuts: what stands in an incomplete layer file is read there by the kernel, past us.
//!
//! ```text
//!            index ──▶ chunk ──▶ device 1, 2: the one file ──FUSE──▶ us ──▶ layer file
//!  copy of it, mounted   └─────▶ device 3: ────────────────────────────────────▲
//!                               once its bytes stand there
//! ```
//!
//! The kernel looks up in the index which device holds a chunk whenever it reads some of it. A mount of
//! an incomplete layer gets a copy of the index of its own, and in it each chunk is led from the one file
//! to the layer file as soon as all its bytes stand there. Both give the same bytes, so that it never
//! matters which one a read meets; but the short cut needs no process. What a killed server and its
//! holder leave behind is therefore all that had come before.
//!
//! The copy has no name once it is mounted, and ends with the mount. A successor gets it from the
//! holder. Behind image and leads it says which layer file the short cuts lead to: a layer that was
//! fetched anew stands in another one, of which that mount knows nothing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use spanfs_cache::{Content, Follower};
use spanfs_layer::UncompressedOffset;
use spanfs_layer::erofs::{self, BLOCK, CHUNK_BLOCKS, Lead, WAYS};
use tempfile::{NamedTempFile, TempPath};

use crate::Layer;
use crate::front::erofs::HEAD_LEN;

/// Device and inode of the layer file, behind all else.
const TARGET_LEN: u64 = 16;
/// Bytes of the index that are changed together.
const PATCH_LEN: u64 = 4096;
/// Bytes of the layer whose leads are in memory together.
const STEP_LEN: u64 = 64 << 20;

/// The short cuts of one mount. They follow the layer as long as this lives.
pub(crate) struct Shortcuts {
    content: Arc<dyn Content>,
    index: Arc<OwnedFd>,
    /// Where the leads stand in it.
    leads: Range<u64>,
    /// One at a time changes the index: neighbouring chunks are written together.
    patching: Mutex<()>,
    /// The disk refused: nothing more is led past us.
    given_up: AtomicBool,
}

impl Shortcuts {
    /// Those of a layer, with the path of its own index, which may go once that is mounted. `None` if
    /// there can't be any: for this content, or this index.
    pub(crate) fn make(layer: &Layer) -> io::Result<Option<(Arc<Self>, TempPath)>> {
        let Some(target) = layer.content.layer_file() else { return Ok(None) };
        let mut index = File::open(&layer.index)?;
        if leads_of(&index)?.is_none_or(|leads| leads.is_empty()) {
            return Ok(None);
        }
        let directory = layer.index.parent().unwrap_or(Path::new("."));
        let mut copy = tempfile::Builder::new().prefix("shown-").tempfile_in(directory)?;
        io::copy(&mut index, copy.as_file_mut())?;
        io::Write::write_all(&mut copy, &identity(target)?)?;
        let (file, path) = NamedTempFile::into_parts(copy);
        let cuts = Self::follow(Arc::new(file.into()), Arc::clone(&layer.content))?;
        Ok(cuts.map(|cuts| (cuts, path)))
    }

    /// Those of a predecessor's mount. `None` if the layer stands in another file now.
    pub(crate) fn resume(
        index: Arc<OwnedFd>,
        content: Arc<dyn Content>,
    ) -> io::Result<Option<Arc<Self>>> {
        let Some(target) = content.layer_file() else { return Ok(None) };
        let len = rustix::fs::fstat(&index)?.st_size as u64;
        let mut found = [0; TARGET_LEN as usize];
        read_at(&index, &mut found, len.saturating_sub(TARGET_LEN))?;
        if found != identity(target)? {
            return Ok(None);
        }
        Self::follow(index, content)
    }

    fn follow(index: Arc<OwnedFd>, content: Arc<dyn Content>) -> io::Result<Option<Arc<Self>>> {
        let Some(mut leads) = leads_of(&index)? else { return Ok(None) };
        leads.end = leads.end.saturating_sub(TARGET_LEN).max(leads.start);
        let (patching, given_up) = (Mutex::default(), AtomicBool::new(false));
        let cuts = Arc::new(Self { content, index, leads, patching, given_up });
        let weak: Weak<Self> = Arc::downgrade(&cuts);
        cuts.content.follow(weak);
        Ok(Some(cuts))
    }

    /// What a successor needs.
    pub(crate) fn index(&self) -> &Arc<OwnedFd> {
        &self.index
    }

    /// Lead the chunks of a range where `way` says, if anywhere.
    fn lead(
        &self,
        range: Range<UncompressedOffset>,
        way: impl Fn(&Lead) -> Option<u16>,
    ) -> io::Result<()> {
        let mut start = range.start.0;
        while start < range.end.0 {
            let end = range.end.0.min(start + STEP_LEN);
            self.lead_step(UncompressedOffset(start)..UncompressedOffset(end), &way)?;
            start = end;
        }
        Ok(())
    }

    fn lead_step(
        &self,
        range: Range<UncompressedOffset>,
        way: impl Fn(&Lead) -> Option<u16>,
    ) -> io::Result<()> {
        let _patching = self.patching.lock();
        let mut changes: Vec<(u64, u16)> =
            self.leads(range)?.iter().filter_map(|it| Some((it.at.into(), way(it)?))).collect();
        changes.sort_unstable();
        let mut piece = [0; PATCH_LEN as usize + 2];
        for near in changes.chunk_by(|(a, _), (b, _)| a / PATCH_LEN == b / PATCH_LEN) {
            let ([(first, _), ..], [.., (last, _)]) = (near, near) else { continue };
            let piece = piece.get_mut(..(last - first) as usize + 2).unwrap_or_default();
            read_at(&self.index, piece, *first)?;
            let mut is_other = false;
            for (at, device) in near {
                let place = piece.get_mut((at - first) as usize..).unwrap_or_default();
                for (byte, device) in place.iter_mut().zip(device.to_le_bytes()) {
                    is_other |= *byte != device;
                    *byte = device;
                }
            }
            if is_other {
                write_at(&self.index, piece, *first)?;
            }
        }
        Ok(())
    }

    /// Bytes of files that are read past us, and of all that can be.
    pub(crate) fn led(&self) -> io::Result<(u64, u64)> {
        let (mut led, mut all) = (0, 0);
        let mut bytes = [0; Lead::LEN * 1024];
        let mut at = self.leads.start;
        while at < self.leads.end {
            let len = (self.leads.end - at).min(bytes.len() as u64) as usize;
            let piece = bytes.get_mut(..len).unwrap_or_default();
            read_at(&self.index, piece, at)?;
            for lead in piece.as_chunks().0.iter().map(Lead::decode) {
                let mut device = [0; 2];
                read_at(&self.index, &mut device, lead.at.into())?;
                all += u64::from(lead.blocks);
                led += u64::from(lead.blocks) * u64::from(u16::from_le_bytes(device) == WAYS);
            }
            at += len as u64;
        }
        Ok((led * BLOCK, all * BLOCK))
    }

    /// The leads of all chunks that have a byte in a range.
    fn leads(&self, range: Range<UncompressedOffset>) -> io::Result<Vec<Lead>> {
        let block = |at: u64| u32::try_from(at / BLOCK).unwrap_or(u32::MAX);
        let first = block(range.start.0).saturating_sub(CHUNK_BLOCKS);
        let start = self.count_before(first)?;
        let end = self.count_before(block(range.end.0.next_multiple_of(BLOCK)))?;
        let mut bytes = vec![0; (end.saturating_sub(start)) as usize * Lead::LEN];
        read_at(&self.index, &mut bytes, self.leads.start + start * Lead::LEN as u64)?;
        let leads = bytes.as_chunks().0.iter().map(Lead::decode);
        Ok(leads.filter(|lead| place(lead).end > range.start).collect())
    }

    /// Leads of chunks that begin before a block.
    fn count_before(&self, block: u32) -> io::Result<u64> {
        let (mut low, mut high) = (0, (self.leads.end - self.leads.start) / Lead::LEN as u64);
        while low < high {
            let middle = low.midpoint(high);
            let mut bytes = [0; Lead::LEN];
            read_at(&self.index, &mut bytes, self.leads.start + middle * Lead::LEN as u64)?;
            match Lead::decode(&bytes).first_block < block {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }
}

impl Follower for Shortcuts {
    fn handle_stands(&self, range: Range<UncompressedOffset>) {
        if self.given_up.load(Ordering::Relaxed) {
            return;
        }
        // Asked for each chunk: it may need spans beside this one, and what stood may be gone.
        let led = self.lead(range, |lead| self.content.stands(place(lead)).then_some(WAYS));
        if let Err(error) = led {
            self.given_up.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "more reads of what is here come to us: an index can't be changed");
        }
    }

    fn handle_gone(&self, range: Range<UncompressedOffset>) {
        let led =
            self.lead(range, |lead| (!self.content.stands(place(lead))).then_some(lead.device));
        if let Err(error) = led {
            tracing::error!(%error, "reads of what is gone go on past us: an index can't be changed");
        }
    }
}

/// Where a chunk lies in the layer file.
fn place(lead: &Lead) -> Range<UncompressedOffset> {
    let start = u64::from(lead.first_block) * BLOCK;
    UncompressedOffset(start)..UncompressedOffset(start + u64::from(lead.blocks) * BLOCK)
}

/// Where the leads of an index stand, and all that follows; `None` if it has no way for them.
fn leads_of(index: impl AsFd) -> io::Result<Option<Range<u64>>> {
    let len = rustix::fs::fstat(&index)?.st_size as u64;
    let mut head = [0; HEAD_LEN];
    let head = head.get_mut(..len.min(HEAD_LEN as u64) as usize).unwrap_or_default();
    read_at(&index, head, 0)?;
    let has_way = erofs::device_count(head) == Some(WAYS);
    Ok(erofs::image_len(head).filter(|start| has_way && *start <= len).map(|start| start..len))
}

fn identity(file: BorrowedFd<'_>) -> io::Result<[u8; TARGET_LEN as usize]> {
    let stat = rustix::fs::fstat(file)?;
    let mut bytes = [0; TARGET_LEN as usize];
    let fields = stat.st_dev.to_le_bytes().into_iter().chain(stat.st_ino.to_le_bytes());
    bytes.iter_mut().zip(fields).for_each(|(to, byte)| *to = byte);
    Ok(bytes)
}

fn read_at(file: impl AsFd, mut to: &mut [u8], mut at: u64) -> io::Result<()> {
    while !to.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut *to, at))?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to = to.get_mut(count..).unwrap_or_default();
        at += count as u64;
    }
    Ok(())
}

fn write_at(file: impl AsFd, mut from: &[u8], mut at: u64) -> io::Result<()> {
    while !from.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, from, at))?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        from = from.get(count..).unwrap_or_default();
        at += count as u64;
    }
    Ok(())
}
