//! Tars written entry by entry, with PAX records as real layers have them.

use std::collections::BTreeMap;

use tar::{Builder, EntryType, Header};

/// A tar in the making.
pub struct Tar(Builder<Vec<u8>>);

/// What an entry says besides its name and content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Twelve bits, and whatever else a header may hold.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// By name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for Tar {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Tar {
    /// PAX records for the next entry.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            text.extend(format!("{len} {key}=").into_bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_path("pax").expect("path");
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        header.set_cksum();
        self.0.append(&header, &text[..]).expect("append");
    }

    /// An entry whose path, time and attributes stand in PAX records. The content of a link is its target.
    pub fn entry(&mut self, kind: EntryType, path: &str, it: &Attributes, content: &[u8]) {
        self.write(kind, path, it, content, (0, 0));
    }

    /// The same for a device.
    pub fn device(&mut self, kind: EntryType, path: &str, it: &Attributes, number: (u32, u32)) {
        self.write(kind, path, it, &[], number);
    }

    fn write(
        &mut self,
        kind: EntryType,
        path: &str,
        it: &Attributes,
        content: &[u8],
        device: (u32, u32),
    ) {
        let mtime = format!("{}.{:09}", it.mtime.0, it.mtime.1);
        let names = it.xattrs.keys().map(|name| format!("SCHILY.xattr.{}", text(name)));
        let names: Vec<String> = names.collect();
        let mut records: Vec<(&str, &[u8])> =
            vec![("mtime", mtime.as_bytes()), ("path", path.as_bytes())];
        let links = matches!(kind, EntryType::Symlink | EntryType::Link);
        if links {
            records.push(("linkpath", content));
        }
        records.extend(names.iter().zip(it.xattrs.values()).map(|(n, v)| (&n[..], &v[..])));
        self.pax(&records);
        let content = if links { &[][..] } else { content };
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("entry").expect("path");
        header.set_mode(it.mode);
        header.set_uid(it.owner.0.into());
        header.set_gid(it.owner.1.into());
        header.set_mtime(it.mtime.0.unsigned_abs());
        header.set_size(content.len() as u64);
        header.set_device_major(device.0).expect("a header that has devices");
        header.set_device_minor(device.1).expect("a header that has devices");
        header.set_cksum();
        self.0.append(&header, content).expect("append");
    }

    /// The archive.
    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("tar")
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
