//! Small layers made by hand, with a model of what a reader must see of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use spanfs_layer::erofs::{self, Device};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};
use spanfs_layer::{FileOffset, Kind, Record, SparseSegment, Time, Tree, UncompressedOffset};
use spanfs_mount::Layer;

use crate::content::{Fate, Handle, Steered, noise};

/// One entry, as lstat(2), readlink(2), getxattr(2) and read(2) show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    /// 0 where it says nothing, for a directory of a stack.
    pub(crate) nlink: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Vec<u8>,
    /// Path of the first name of the same inode.
    pub(crate) same_as: String,
}

/// What a mount shows, by path without leading slash; the root is left out.
pub(crate) type Snapshot = BTreeMap<String, Seen>;

/// A layer in the making: bytes of its layer file, entries, and the model.
#[derive(Clone, Default)]
pub(crate) struct Maker {
    pub(crate) bytes: Vec<u8>,
    pub(crate) records: Vec<Record>,
    pub(crate) model: Snapshot,
}

impl Maker {
    fn record(&mut self, name: &str, kind: Kind, mode: u32) -> &mut Record {
        let number = self.records.len() as u32;
        let header = UncompressedOffset(self.bytes.len() as u64);
        self.bytes.extend(noise(512, u64::from(number) + 77)); // Whatever stands in headers.
        self.records.push(Record {
            name: name.into(),
            kind,
            typeflag: b'0',
            link: Vec::new(),
            mode: i64::from(mode),
            uid: i64::from(number % 3 * 1000),
            gid: i64::from(number % 5),
            uname: Vec::new(),
            gname: Vec::new(),
            mtime: Time { seconds: 1_500_000_000 + i64::from(number), nanoseconds: number * 1001 },
            devmajor: 0,
            devminor: 0,
            pax: Vec::new(),
            header,
            data: UncompressedOffset(self.bytes.len() as u64),
            size: 0,
            sparse: None,
        });
        self.records.last_mut().unwrap()
    }

    fn see(&mut self, type_bits: u32) -> &mut Seen {
        let record = self.records.last().unwrap();
        let path = String::from_utf8(record.name.clone()).unwrap();
        let seen = Seen {
            mode: type_bits | record.mode as u32,
            owner: (record.uid as u32, record.gid as u32),
            mtime: (record.mtime.seconds, record.mtime.nanoseconds.into()),
            rdev: 0,
            nlink: if type_bits == 0o40_000 { 2 } else { 1 },
            link: Vec::new(),
            xattrs: record.xattrs().map(|(name, value)| (name.into(), value.into())).collect(),
            content: Vec::new(),
            same_as: path.clone(),
        };
        if type_bits == 0o40_000
            && let Some((parent, _)) = path.rsplit_once('/')
        {
            self.model.get_mut(parent).unwrap().nlink += 1;
        }
        self.model.insert(path.clone(), seen);
        self.model.get_mut(&path).unwrap()
    }

    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> &mut Self {
        self.record(name, Kind::Directory, mode);
        self.see(0o40_000);
        self
    }

    pub(crate) fn file(&mut self, name: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        self.file_with(name, mode, content, &[])
    }

    pub(crate) fn file_with(
        &mut self,
        name: &str,
        mode: u32,
        content: Vec<u8>,
        xattrs: &[(&str, &[u8])],
    ) -> &mut Self {
        let record = self.record(name, Kind::Regular, mode);
        record.size = content.len() as u64;
        for (key, value) in xattrs {
            record.pax.push((format!("SCHILY.xattr.{key}").into(), value.to_vec()));
        }
        record.pax.sort();
        self.bytes.extend_from_slice(&content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0xaa); // Padding never shows.
        self.see(0o100_000).content = content;
        self
    }

    /// A file whose `runs` (offset, length) stand back to back in the tar.
    pub(crate) fn sparse(&mut self, name: &str, size: u64, runs: &[(u64, u64)]) -> &mut Self {
        let stored: u64 = runs.iter().map(|&(_, len)| len).sum();
        let record = self.record(name, Kind::Regular, 0o644);
        let mut data = record.data;
        let mut segments = Vec::new();
        for &(file, len) in runs {
            segments.push(SparseSegment { file: FileOffset(file), data, len });
            data.0 += len;
        }
        record.size = stored;
        record.sparse = Some((size, segments));
        let bytes = noise(stored as usize, size);
        let mut content = vec![0; size as usize];
        let mut from = 0;
        for &(file, len) in runs {
            content[file as usize..][..len as usize]
                .copy_from_slice(&bytes[from..][..len as usize]);
            from += len as usize;
        }
        self.bytes.extend_from_slice(&bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0xaa);
        self.see(0o100_000).content = content;
        self
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.record(name, Kind::Symlink, 0o777).link = target.into();
        self.see(0o120_000).link = target.into();
        self
    }

    pub(crate) fn hardlink(&mut self, name: &str, target: &str) -> &mut Self {
        let mode = self.model[target].mode & 0o7777;
        let (owner, mtime) = (self.model[target].owner, self.model[target].mtime);
        let record = self.record(name, Kind::Hardlink, mode);
        record.link = target.into();
        (record.uid, record.gid) = (owner.0.into(), owner.1.into());
        record.mtime = Time { seconds: mtime.0, nanoseconds: mtime.1 as u32 };
        let first = self.model[target].same_as.clone();
        let mut seen = self.model[&first].clone();
        seen.nlink += 1;
        self.model.insert(name.into(), seen.clone());
        for other in self.model.values_mut().filter(|other| other.same_as == first) {
            other.nlink = seen.nlink;
        }
        self
    }

    pub(crate) fn device(&mut self, name: &str, kind: Kind, major: u32, minor: u32) -> &mut Self {
        let record = self.record(name, kind, 0o620);
        (record.devmajor, record.devminor) = (major.into(), minor.into());
        let bits = match kind {
            Kind::CharDevice => 0o20_000,
            Kind::BlockDevice => 0o60_000,
            _ => 0o10_000,
        };
        self.see(bits).rdev = rustix::fs::makedev(major, minor);
        self
    }

    /// An entry that the model does not show: `.wh.` names.
    pub(crate) fn whiteout(&mut self, name: &str) -> &mut Self {
        self.record(name, Kind::Regular, 0o644);
        self
    }

    pub(crate) fn tree(&self) -> Tree {
        let mut builder = TreeBuilder::new(TreeOptions::default());
        for record in &self.records {
            builder.push(record).unwrap();
        }
        builder.finish().unwrap()
    }

    /// The layer with its index in `directory`, bytes arriving as `fate` says.
    pub(crate) fn layer(&self, directory: &Path, fate: Option<Fate>) -> (Layer, Arc<Steered>) {
        let content = match fate {
            Some(fate) => Steered::new(self.bytes.clone(), fate),
            None => {
                std::fs::create_dir_all(directory).unwrap();
                Steered::complete(self.bytes.clone(), &directory.join("data"))
            }
        };
        (self.shown(directory, &content), content)
    }

    /// The same, with a layer file in which every other stretch comes to stand.
    pub(crate) fn standing(&self, directory: &Path, fate: Fate) -> (Layer, Arc<Steered>) {
        std::fs::create_dir_all(directory).unwrap();
        let content = Steered::standing(self.bytes.clone(), fate, &directory.join("standing"));
        (self.shown(directory, &content), content)
    }

    fn shown(&self, directory: &Path, content: &Arc<Steered>) -> Layer {
        let handle = Arc::new(Handle(Arc::clone(content)));
        let device = Device { len: self.bytes.len() as u64, tag: b"test" };
        // The largest file lies in a device of its own.
        let made = erofs::write_ways(&self.tree(), &[device], 1 << 20).unwrap();
        std::fs::create_dir_all(directory).unwrap();
        let index = directory.join("index, with a comma");
        // Not in its place: a predecessor's may be mounted.
        let fresh = directory.join("index.new");
        std::fs::write(&fresh, &made.bytes).unwrap();
        std::fs::rename(&fresh, &index).unwrap();
        let (name, data_len) = ("test".into(), made.data_lens[0]);
        Layer { name, content: handle, index, data_len, copies: made.copies }
    }
}

/// Everything that a layer can hold.
pub(crate) fn rich() -> Maker {
    let mut maker = Maker::default();
    // Version 2, effective, cap_net_raw permitted (`linux/capability.h`).
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    maker
        .directory("bin", 0o755)
        .file_with("bin/ping", 0o755, noise(70_001, 1), &[("security.capability", &capability)])
        .file("bin/su", 0o4755, noise(512, 2))
        .hardlink("bin/sudo", "bin/su")
        .directory("bin/deep", 0o2775)
        .hardlink("bin/deep/su", "bin/sudo")
        .directory("tmp", 0o1777)
        .file("tmp/empty", 0o600, Vec::new())
        .file("tmp/one", 0o400, vec![7])
        .file_with("tmp/notes", 0o644, noise(5000, 3), &[("user.a", b"1"), ("user.b", b"\0\xff")])
        .symlink("link", "bin/ping")
        .symlink("dangling", "/nowhere/at all")
        .device("null", Kind::CharDevice, 1, 3)
        .device("disk", Kind::BlockDevice, 259, 70_000)
        .device("pipe", Kind::Fifo, 0, 0)
        .file("big", 0o644, noise(3 << 20 | 17, 4))
        .file("name with \"odd\" signs, ü", 0o644, noise(100, 5))
        .directory("many", 0o755);
    for number in 0..700 {
        maker.file(
            &format!("many/{number:04}-{}", "n".repeat(number % 90)),
            0o644,
            vec![3; number],
        );
    }
    maker
}
