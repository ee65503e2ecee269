//! Layer indexes: made from the layers' entries, kept on disk by what they were made from.
//!
//! A directory that a layer only implies has the attributes of the same directory in the layers
//! below, as containerd's applier gives it them; a tar alone can't tell them. The index of such a
//! layer depends on what lies below, and is kept by that as well.

mod below;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanfs_layer::Time;
use spanfs_layer::erofs::{self, DataCopy, Device};
use spanfs_layer::tree::{Tree, TreeOptions, Whiteouts};
use spanfs_layer::{Digest, Kind, Record, UncompressedOffset};
use spanfs_mount::Layer as MountLayer;
use tempfile::NamedTempFile;

use below::implied;

use crate::image::{ImageError, Layers, OpenLayer, replace, touch};
use crate::later::Later;
use crate::mounted::ShowError;
use crate::side_by_side::{cores, side_by_side};

/// What is to be known of a kept index. Changing it makes older ones be made anew.
#[derive(Clone, Serialize, Deserialize)]
struct Note {
    format: u32,
    digest: Digest,
    stamp: Stamp,
    data_len: u64,
    /// From, to, whereto.
    copies: Vec<(u64, u64, u64)>,
    /// Whether the layer implies directories.
    implied: bool,
}

const FORMAT: u32 = 4;

/// Files of this length are read past the page cache of the one-file mount: one copy less, and half the
/// memory. Smaller ones gain more by coming together with their neighbours.
const LARGE_LEN_MIN: u64 = 8 << 20;

/// Inode, length and times of an index. While they stay, nobody wrote to it: it is what we made, and
/// need not be read to know that.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp([i64; 6]);

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        let (ino, size) = (meta.ino().cast_signed(), meta.size().cast_signed());
        Self([ino, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()])
    }
}

/// Layers with their indexes, made side by side where they are not kept in `directory`. They can be
/// shown before they are on the disk for good, which `later` sees to.
pub(crate) fn indexed(
    layers: &Layers,
    bare_layer: bool,
    directory: &Path,
    later: &Later,
) -> Result<Vec<MountLayer>, ShowError> {
    fs::create_dir_all(directory)
        .map_err(|source| ShowError::State { path: directory.to_owned(), source })?;
    let made = side_by_side(&layers.layers, cores(), |number, layer| {
        Plan::alone(layer, number == 0 && !bare_layer).index(directory, Some(later))
    });
    let mut made = made.into_iter().collect::<Result<Vec<Made>, _>>()?;
    // Those that imply directories are made once more, unless that was done.
    let (mut plans, mut implying) = (Vec::new(), Vec::new());
    for (number, layer) in layers.layers.iter().enumerate().skip(1) {
        if !made[number].note.implied {
            continue;
        }
        let over = Plan::alone(layer, false).over(&layers.below(number));
        if let Some(kept) = over.kept(directory) {
            made[number] = kept;
            continue;
        }
        let paths = match made[number].implied.take() {
            Some(paths) => paths,
            None => implied(&layer.tree(over.options())?),
        };
        implying.push((number, paths));
        plans.push(over);
    }
    if !implying.is_empty() {
        let described = below::describe(layers, &implying)?;
        let over = side_by_side(&plans, cores(), |number, plan| {
            plan.described(directory, described[number].clone(), Some(later))
        });
        for ((number, _), over) in implying.into_iter().zip(over) {
            made[number] = over?;
        }
    }
    let layers = layers.layers.iter().zip(made);
    Ok(layers.map(|(layer, made)| mount_layer(layer, made.path, &made.note)).collect())
}

/// A directory of the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its path, without a slash at either end.
    pub path: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes, without overlayfs's own.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One layer with its index, made where it is not kept in `directory`.
///
/// `lowest`: nothing lies below it. Else `below` is asked about the directories that the layer only
/// implies, and describes those that it knows.
pub fn index_layer(
    layer: &OpenLayer,
    lowest: bool,
    directory: &Path,
    below: impl FnOnce(&[Vec<u8>]) -> Vec<Described>,
) -> Result<MountLayer, ShowError> {
    fs::create_dir_all(directory)
        .map_err(|source| ShowError::State { path: directory.to_owned(), source })?;
    let alone = Plan::alone(layer, lowest);
    let made = alone.index(directory, None)?;
    if lowest || !made.note.implied {
        return Ok(mount_layer(layer, made.path, &made.note));
    }
    let paths = match made.implied {
        Some(paths) => paths,
        None => implied(&layer.tree(alone.options())?),
    };
    let described = below(&paths);
    let made = alone.with(&described).described(directory, described, None)?;
    Ok(mount_layer(layer, made.path, &made.note))
}

/// The tree that the index of [`index_layer`] shows, for who unpacks the layer.
pub fn layer_tree(
    layer: &OpenLayer,
    lowest: bool,
    below: impl FnOnce(&[Vec<u8>]) -> Vec<Described>,
) -> Result<Tree, ShowError> {
    let plan = Plan::alone(layer, lowest);
    let tree = layer.tree(plan.options())?;
    let implied = implied(&tree);
    let described = if lowest || implied.is_empty() { Vec::new() } else { below(&implied) };
    Ok(plan.describe(tree, described)?)
}

/// An index to be had.
struct Plan<'a> {
    layer: &'a OpenLayer,
    whiteouts: Whiteouts,
    key: String,
}

/// An index that is there.
struct Made {
    path: PathBuf,
    note: Note,
    /// The directories that the layer implies, if it was made just now.
    implied: Option<Vec<Vec<u8>>>,
}

impl<'a> Plan<'a> {
    /// The index of a layer by itself. Nothing lies below the lowest layer of an image, so that its
    /// whiteouts would hide nothing and only show.
    fn alone(layer: &'a OpenLayer, lowest: bool) -> Self {
        let (whiteouts, suffix) =
            if lowest { (Whiteouts::Suppress, "-lowest") } else { (Whiteouts::Show, "") };
        Self { layer, whiteouts, key: format!("{}{suffix}", layer.index_key()) }
    }

    /// The same over other layers, which will describe directories.
    fn over(self, below: &Layers) -> Self {
        let keys: Vec<String> = below.layers.iter().map(OpenLayer::index_key).collect();
        let key = format!("{}-over-{}", self.key, Digest::of(keys.join(" ").as_bytes()).hex());
        Self { key, ..self }
    }

    fn with(self, described: &[Described]) -> Self {
        let text = format!("{described:?}");
        let key = format!("{}-with-{}", self.key, Digest::of(text.as_bytes()).hex());
        Self { key, ..self }
    }

    fn options(&self) -> TreeOptions {
        TreeOptions { whiteouts: self.whiteouts, ..TreeOptions::default() }
    }

    /// One that an earlier run made.
    fn kept(&self, directory: &Path) -> Option<Made> {
        let path = directory.join(&self.key);
        let note_path = note_path(&path);
        let note = kept(&path, &note_path)?;
        // The index itself is known by its times.
        touch(&note_path);
        Some(Made { path, note, implied: None })
    }

    fn index(&self, directory: &Path, later: Option<&Later>) -> Result<Made, ShowError> {
        self.described(directory, Vec::new(), later)
    }

    /// With these directories in front of the layer's own entries.
    fn described(
        &self,
        directory: &Path,
        described: Vec<Described>,
        later: Option<&Later>,
    ) -> Result<Made, ShowError> {
        if let Some(made) = self.kept(directory) {
            return Ok(made);
        }
        let path = directory.join(&self.key);
        let Fresh { note, bytes, implied } = self.make(described)?;
        let file = write(&path, &bytes)
            .map_err(|source| ShowError::State { path: path.clone(), source })?;
        let (sealing, note_path) = (note.clone(), note_path(&path));
        let work = move || {
            if let Err(error) = seal(&file, sealing, &note_path) {
                tracing::warn!(note = %note_path.display(), %error, "an index is not kept");
            }
        };
        match later {
            Some(later) => later.add(work),
            None => work(),
        }
        Ok(Made { path, note, implied: Some(implied) })
    }

    /// `tree` with the attributes of directories that it only implies.
    fn describe(&self, tree: Tree, described: Vec<Described>) -> Result<Tree, ImageError> {
        if described.is_empty() {
            return Ok(tree);
        }
        let records: Vec<Record> = described.into_iter().map(record).collect();
        self.layer.tree_with(self.options(), &records)
    }

    fn make(&self, described: Vec<Described>) -> Result<Fresh, ShowError> {
        let before: Vec<Record> = described.into_iter().map(record).collect();
        let tree = self.layer.tree_with(self.options(), &before)?;
        let implied = implied(&tree);
        let tag = self.layer.descriptor.digest.hex().to_string();
        let device = Device { len: self.layer.content.len(), tag: tag.as_bytes() };
        let index = erofs::write_apart(&tree, &[device], LARGE_LEN_MIN)
            .map_err(|error| self.layer.bad(&error))?;
        let copies = index.copies.iter();
        let note = Note {
            format: FORMAT,
            digest: Digest::of(&index.bytes),
            stamp: Stamp::default(),
            data_len: index.data_lens.first().copied().unwrap_or(device.len),
            copies: copies.map(|it| (it.from.start.0, it.from.end.0, it.to.0)).collect(),
            implied: !implied.is_empty(),
        };
        Ok(Fresh { note, bytes: index.bytes, implied })
    }
}

/// An index that no disk has yet.
struct Fresh {
    note: Note,
    bytes: Vec<u8>,
    /// Directories that the layer only implies.
    implied: Vec<Vec<u8>>,
}

fn note_path(index: &Path) -> PathBuf {
    index.with_extension("json")
}

/// The kernel gets no index that is not byte for byte what we wrote.
fn kept(path: &Path, note_path: &Path) -> Option<Note> {
    let note: Note = serde_json::from_slice(&fs::read(note_path).ok()?).ok()?;
    let sealed = || Some(Stamp::of(&fs::metadata(path).ok()?) == note.stamp);
    let equal = || Some(Digest::of(&fs::read(path).ok()?) == note.digest);
    (note.format == FORMAT && (sealed()? || equal()?)).then_some(note)
}

/// Write an index whole; not yet on the disk for good.
fn write(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut fresh = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    fresh.write_all(bytes)?;
    fresh.persist(path).map_err(|error| error.error)
}

/// Bring an index to the disk, then say what it looks like.
fn seal(file: &File, note: Note, note_path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let note = Note { stamp: Stamp::of(&file.metadata()?), ..note };
    replace(note_path, &serde_json::to_vec(&note)?)
}

fn mount_layer(layer: &OpenLayer, index: PathBuf, note: &Note) -> MountLayer {
    let copy = |&(start, end, to): &(u64, u64, u64)| DataCopy {
        device: 0,
        from: UncompressedOffset(start)..UncompressedOffset(end),
        to: UncompressedOffset(to),
    };
    MountLayer {
        name: layer.descriptor.digest.to_string(),
        content: Arc::clone(&layer.content),
        index,
        data_len: note.data_len,
        copies: note.copies.iter().map(copy).collect(),
    }
}

/// The entry of a directory.
fn record(described: Described) -> Record {
    let Described { path, mode, uid, gid, mtime, xattrs } = described;
    let pax = xattrs
        .into_iter()
        .map(|(name, value)| ([b"SCHILY.xattr.".as_slice(), &name].concat(), value))
        .collect();
    Record {
        name: [path.as_slice(), b"/"].concat(),
        kind: Kind::Directory,
        typeflag: b'5',
        link: Vec::new(),
        mode: mode.into(),
        uid: uid.into(),
        gid: gid.into(),
        uname: Vec::new(),
        gname: Vec::new(),
        mtime,
        devmajor: 0,
        devminor: 0,
        pax,
        header: UncompressedOffset(0),
        data: UncompressedOffset(0),
        size: 0,
        sparse: None,
    }
}
