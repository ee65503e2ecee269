//! Layer indexes: made from the layers' entries, kept on disk by what they were made from.
//!
//! A directory that a layer only implies has the attributes of the same directory in the layers
//! below, as containerd's applier gives it them; a tar alone can't tell them. The index of such a
//! layer depends on what lies below, and is kept by that as well.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanfs_layer::Time;
use spanfs_layer::erofs::{self, DataCopy, Device};
use spanfs_layer::tree::{NodeKind, Tree, TreeOptions, Whiteouts};
use spanfs_layer::{Digest, Kind, Record, UncompressedOffset};
use spanfs_mount::Layer as MountLayer;
use tempfile::NamedTempFile;

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

const FORMAT: u32 = 3;

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
        let alone = Plan::alone(layer, number == 0 && !bare_layer);
        let (path, note) = alone.index(directory, Some(later))?;
        if number == 0 || !note.implied {
            return Ok(mount_layer(layer, path, &note));
        }
        let (path, note) = alone.over(&layers.below(number)).index(directory, Some(later))?;
        Ok(mount_layer(layer, path, &note))
    });
    made.into_iter().collect()
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
    let (path, note) = alone.index(directory, None)?;
    if lowest || !note.implied {
        return Ok(mount_layer(layer, path, &note));
    }
    let described = below(&implied(&layer.tree(alone.options())?));
    let (path, note) = alone.with(described).index(directory, None)?;
    Ok(mount_layer(layer, path, &note))
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
    below: Below,
}

/// What lies below a layer.
enum Below {
    /// Nothing that is looked at.
    Nothing,
    Layers(Layers),
    Directories(Vec<Described>),
}

impl<'a> Plan<'a> {
    /// The index of a layer by itself. Nothing lies below the lowest layer of an image, so that its
    /// whiteouts would hide nothing and only show.
    fn alone(layer: &'a OpenLayer, lowest: bool) -> Self {
        let (whiteouts, suffix) =
            if lowest { (Whiteouts::Suppress, "-lowest") } else { (Whiteouts::Show, "") };
        let key = format!("{}{suffix}", layer.index_key());
        Self { layer, whiteouts, key, below: Below::Nothing }
    }

    fn over(self, below: &Layers) -> Self {
        let keys: Vec<String> = below.layers.iter().map(OpenLayer::index_key).collect();
        let key = format!("{}-over-{}", self.key, Digest::of(keys.join(" ").as_bytes()).hex());
        Self { key, below: Below::Layers(below.clone()), ..self }
    }

    fn with(self, described: Vec<Described>) -> Self {
        let text = format!("{described:?}");
        let key = format!("{}-with-{}", self.key, Digest::of(text.as_bytes()).hex());
        Self { key, below: Below::Directories(described), ..self }
    }

    fn options(&self) -> TreeOptions {
        TreeOptions { whiteouts: self.whiteouts, ..TreeOptions::default() }
    }

    fn index(&self, directory: &Path, later: Option<&Later>) -> Result<(PathBuf, Note), ShowError> {
        let path = directory.join(&self.key);
        let note_path = path.with_extension("json");
        if let Some(note) = kept(&path, &note_path) {
            // The index itself is known by its times.
            touch(&note_path);
            return Ok((path, note));
        }
        let (note, bytes) = self.make()?;
        let file = write(&path, &bytes)
            .map_err(|source| ShowError::State { path: path.clone(), source })?;
        let sealing = note.clone();
        let work = move || {
            if let Err(error) = seal(&file, sealing, &note_path) {
                tracing::warn!(note = %note_path.display(), %error, "an index is not kept");
            }
        };
        match later {
            Some(later) => later.add(work),
            None => work(),
        }
        Ok((path, note))
    }

    /// `tree` with the attributes of directories that it only implies.
    fn describe(&self, tree: Tree, described: Vec<Described>) -> Result<Tree, ImageError> {
        if described.is_empty() {
            return Ok(tree);
        }
        let records: Vec<Record> = described.into_iter().map(record).collect();
        self.layer.tree_with(self.options(), &records)
    }

    fn make(&self) -> Result<(Note, Vec<u8>), ShowError> {
        let digest = self.layer.descriptor.digest;
        let bad = |reason: String| ImageError::Corrupt(format!("layer {digest}: {reason}"));
        let mut tree = self.layer.tree(self.options())?;
        let implied = tree.nodes().any(|node| node.is_implied());
        let described = match &self.below {
            Below::Nothing => Vec::new(),
            Below::Layers(below) => described_below(&tree, &below.merged()?),
            Below::Directories(described) => described.clone(),
        };
        tree = self.describe(tree, described)?;
        let tag = digest.hex().to_string();
        let device = Device { len: self.layer.content.len(), tag: tag.as_bytes() };
        let index = erofs::write(&tree, &[device]).map_err(|error| bad(error.to_string()))?;
        let copies = index.copies.iter();
        let note = Note {
            format: FORMAT,
            digest: Digest::of(&index.bytes),
            stamp: Stamp::default(),
            data_len: index.data_lens.first().copied().unwrap_or(device.len),
            copies: copies.map(|it| (it.from.start.0, it.from.end.0, it.to.0)).collect(),
            implied,
        };
        Ok((note, index.bytes))
    }
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

/// Paths of the directories that `tree` implies, parents first.
fn implied(tree: &Tree) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut directories = vec![(tree.root(), Vec::new())];
    while let Some((directory, path)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            let Some(node) = tree.node(id).filter(|node| node.kind() == NodeKind::Directory) else {
                continue;
            };
            let path = join(&path, name);
            if node.is_implied() {
                found.push(path.clone());
            }
            directories.push((id, path));
        }
    }
    found
}

/// The directories that `tree` implies, as `below` describes them.
fn described_below(tree: &Tree, below: &Tree) -> Vec<Described> {
    let mut found = Vec::new();
    let mut directories = vec![(tree.root(), below.root(), Vec::new())];
    while let Some((directory, lower, path)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            let is_directory =
                |node: &spanfs_layer::tree::Node<'_>| node.kind() == NodeKind::Directory;
            let Some(node) = tree.node(id).filter(is_directory) else { continue };
            let Some(lower) = below.lookup(lower, name) else { continue };
            let Some(described) = below.node(lower).filter(is_directory) else { continue };
            let path = join(&path, name);
            if node.is_implied() && !described.is_implied() {
                found.push(Described {
                    path: path.clone(),
                    mode: described.permissions().into(),
                    uid: described.uid(),
                    gid: described.gid(),
                    mtime: described.mtime(),
                    xattrs: described
                        .xattrs()
                        .map(|(name, value)| (name.to_owned(), value.to_owned()))
                        .collect(),
                });
            }
            directories.push((id, lower, path));
        }
    }
    found
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match directory {
        [] => name.to_owned(),
        _ => [directory, b"/", name].concat(),
    }
}
