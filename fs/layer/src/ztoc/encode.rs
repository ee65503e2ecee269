//! From a zTOC to bytes, in the order of the peer's writer: the digest depends on it.

use alloc::vec::Vec;

use super::flatbuffer::{Builder, Written};
use super::{Compression, Ztoc, time};
use crate::{Kind, Record};
use alloc::string::ToString;

impl Ztoc {
    /// The encoded form. Ids are cut to 32 bits and times outside the years 0 to 9999 left out, as
    /// peers do.
    pub fn encode(&self) -> Vec<u8> {
        let entry_len = 400;
        let len = self.checkpoints.len() + self.records.len() * entry_len;
        let mut builder = Builder::with_capacity(len + self.span_digests.len() * 88 + 256);
        let version = builder.string(&self.version);
        let build_tool = builder.string(&self.build_tool);
        let toc = self.write_toc(&mut builder);
        let info = self.write_compression_info(&mut builder);
        let mut root = builder.table(6);
        root.offset(0, version);
        root.offset(1, build_tool);
        root.offset(4, toc);
        root.i64(2, self.compressed_size as i64);
        root.i64(3, self.uncompressed_size as i64);
        root.offset(5, info);
        let root = root.finish();
        builder.finish(root)
    }

    fn write_toc(&self, builder: &mut Builder) -> Written {
        let mut entries: Vec<Written> =
            self.records.iter().rev().map(|record| write_entry(record, builder)).collect();
        entries.reverse();
        let metadata = builder.offsets(&entries);
        let mut toc = builder.table(1);
        toc.offset(0, metadata);
        toc.finish()
    }

    fn write_compression_info(&self, builder: &mut Builder) -> Written {
        let checkpoints = builder.byte_vector(&self.checkpoints);
        let write = |digest: &crate::Digest| builder.string(digest.to_string().as_bytes());
        let digests: Vec<Written> = self.span_digests.iter().map(write).collect();
        let digests = builder.offsets(&digests);
        let mut info = builder.table(4);
        info.i32(1, self.span_digests.len() as i32 - 1);
        info.offset(2, digests);
        info.offset(3, checkpoints);
        info.i8(0, self.compression.code(), Compression::Gzip.code());
        info.finish()
    }
}

fn write_entry(record: &Record, builder: &mut Builder) -> Written {
    let name = builder.string(&record.name);
    let kind = builder.string(kind_name(record.kind));
    let link = builder.string(&record.link);
    let uname = builder.string(&record.uname);
    let gname = builder.string(&record.gname);
    let mod_time = builder.string(time::format(record.mtime).as_bytes());
    let mut xattrs = Vec::with_capacity(record.pax.len());
    for (key, value) in &record.pax {
        let key = builder.string(key);
        let value = builder.string(value);
        let mut xattr = builder.table(2);
        xattr.offset(0, key);
        xattr.offset(1, value);
        xattrs.push(xattr.finish());
    }
    let xattrs = builder.offsets(&xattrs);
    let mut entry = builder.table(14);
    entry.offset(0, name);
    entry.offset(1, kind);
    entry.i64(2, record.data.0 as i64);
    entry.i64(3, record.size as i64);
    entry.offset(4, link);
    entry.i64(5, record.mode);
    entry.u32(6, record.uid as u32);
    entry.u32(7, record.gid as u32);
    entry.offset(8, uname);
    entry.offset(9, gname);
    entry.offset(10, mod_time);
    entry.i64(11, record.devmajor);
    entry.i64(12, record.devminor);
    entry.offset(13, xattrs);
    entry.finish()
}

fn kind_name(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Regular => b"reg",
        Kind::Hardlink => b"hardlink",
        Kind::Symlink => b"symlink",
        Kind::CharDevice => b"char",
        Kind::BlockDevice => b"block",
        Kind::Directory => b"dir",
        Kind::Fifo => b"fifo",
    }
}
