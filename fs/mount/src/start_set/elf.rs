//! What an ELF file needs to be loaded: its interpreter and its libraries.

use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRSZ, DT_STRTAB, ELFCLASS32, ELFCLASS64, FileHeader32,
    FileHeader64, PT_INTERP, PT_LOAD,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};

use super::paths::{parent, variable};
use super::pieces::Pieces;

/// Libraries of one file; the largest programs seen have some 150.
const NEEDED_MAX: usize = 512;
/// Segments; real files have about a dozen.
const SEGMENTS_MAX: usize = 128;
/// Entries of the dynamic section.
const DYNAMIC_MAX: usize = 4096;

/// What the dynamic section says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Linkage {
    pub(super) interpreter: Option<Vec<u8>>,
    pub(super) needed: Vec<Vec<u8>>,
    rpath: Vec<u8>,
    runpath: Vec<u8>,
}

impl Linkage {
    /// Directories to search before the cache (ld.so(8)), for the file at `path`.
    pub(super) fn directories(&self, path: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let rpath = if self.runpath.is_empty() { self.rpath.as_slice() } else { &[] };
        let environment = variable(env, b"LD_LIBRARY_PATH").unwrap_or_default();
        [rpath, environment, &self.runpath]
            .iter()
            .flat_map(|list| list.split(|&byte| byte == b':'))
            .filter(|directory| !directory.is_empty())
            .map(|directory| expand(directory, parent(path)))
            .collect()
    }
}

/// `$ORIGIN` is the directory of the file itself.
fn expand(directory: &[u8], origin: &[u8]) -> Vec<u8> {
    for token in [b"$ORIGIN".as_slice(), b"${ORIGIN}"] {
        if let Some(at) = directory.windows(token.len()).position(|window| window == token) {
            let (before, after) = directory.split_at(at);
            return [before, origin, after.strip_prefix(token).unwrap_or(after)].concat();
        }
    }
    directory.to_vec()
}

/// Reads as far as the pieces go; `None` if bytes are missing (the pieces know which) or the file
/// is malformed.
pub(super) fn read(file: &Pieces) -> Option<Linkage> {
    match *file.read_bytes_at(0, 16).ok()?.get(4)? {
        ELFCLASS32 => read_class::<FileHeader32<Endianness>>(file),
        ELFCLASS64 => read_class::<FileHeader64<Endianness>>(file),
        _ => None,
    }
}

fn read_class<E: FileHeader<Endian = Endianness>>(file: &Pieces) -> Option<Linkage> {
    let header = E::parse(file).ok()?;
    let endian = header.endian().ok()?;
    if usize::from(header.e_phnum(endian)) > SEGMENTS_MAX {
        return None;
    }
    let segments = header.program_headers(endian, file).ok()?;
    let mut linkage = Linkage::default();
    for segment in segments {
        if segment.p_type(endian) == PT_INTERP {
            let text = segment.data(endian, file).ok()?;
            linkage.interpreter = text.split(|&byte| byte == 0).next().map(<[u8]>::to_vec);
        }
    }
    for segment in segments {
        if let Some(entries) = segment.dynamic(endian, file).ok()? {
            let entries = entries.get(..entries.len().min(DYNAMIC_MAX))?;
            read_dynamic::<E>(file, endian, segments, entries, &mut linkage)?;
        }
    }
    Some(linkage)
}

fn read_dynamic<E: FileHeader<Endian = Endianness>>(
    file: &Pieces,
    endian: Endianness,
    segments: &[E::ProgramHeader],
    entries: &[E::Dyn],
    linkage: &mut Linkage,
) -> Option<()> {
    let value = |tag: u32| {
        let entry = entries.iter().find(|entry| entry.d_tag(endian).into() == u64::from(tag))?;
        Some(entry.d_val(endian).into())
    };
    // A program without names needs nothing.
    let (Some(address), Some(len)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Some(()) };
    let start = file_offset::<E>(endian, segments, address)?;
    let end = start.checked_add(len)?;
    let text = |at: u64| {
        let from = start.checked_add(at).filter(|&from| from < end)?;
        file.read_bytes_at_until(from..end, 0).ok().map(<[u8]>::to_vec)
    };
    for entry in entries {
        let (tag, at): (u64, u64) = (entry.d_tag(endian).into(), entry.d_val(endian).into());
        match u32::try_from(tag) {
            Ok(0) => break,
            Ok(DT_NEEDED) if linkage.needed.len() < NEEDED_MAX => linkage.needed.push(text(at)?),
            Ok(DT_RPATH) => linkage.rpath = text(at)?,
            Ok(DT_RUNPATH) => linkage.runpath = text(at)?,
            _ => {}
        }
    }
    Some(())
}

fn file_offset<E: FileHeader<Endian = Endianness>>(
    endian: Endianness,
    segments: &[E::ProgramHeader],
    address: u64,
) -> Option<u64> {
    segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD).find_map(|segment| {
        let into = address.checked_sub(segment.p_vaddr(endian).into())?;
        let size: u64 = segment.p_filesz(endian).into();
        let offset: u64 = segment.p_offset(endian).into();
        (into < size).then(|| offset.checked_add(into))?
    })
}
