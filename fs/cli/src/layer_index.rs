//! Layer indexes: made from the layers' entries, kept on disk by what they were made from.
//!
//! A directory that a layer only implies has the attributes of the same directory in the layers
//! below, as containerd's applier gives it them; a tar alone can't tell them. The index of such a
//! layer depends on what lies below, and is kept by that as well.

mod below;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanfs_layer::Time;
use spanfs_layer::erofs::{self, DataCopy, Device};
use spanfs_layer::tree::{Tree, TreeOptions, Whiteouts};
use spanfs_layer::{Algorithm, Digest, Hasher, Kind, Record, UncompressedOffset};
use spanfs_mount::Layer as MountLayer;
use tempfile::NamedTempFile;

use below::implied;

use crate::image::{ImageError, Images, Layers, OpenLayer, replace, touch};
use crate::later::Later;
use crate::mounted::ShowError;
use crate::side_by_side::{cores, side_by_side};

/// What is to be known of a kept index. Changing it makes older ones be made anew.
#[derive(Clone, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// None until the index is on the disk for good.
    #[serde(flatten)]
    seal: Option<Seal>,
    data_len: u64,
    /// From, to, whereto.
    copies: Vec<(u64, u64, u64)>,
    /// Whether the layer implies directories.
    implied: bool,
}

const FORMAT: u32 = 6;

/// What an index must be to be the one that we wrote.
#[derive(Clone, Serialize, Deserialize)]
struct Seal {
    digest: Digest,
    stamp: Stamp,
}

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
        Plan::alone(layer, number == 0 && !bare_layer).index(directory, later)
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
            plan.described(directory, described[number].clone(), later)
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

/// One layer with its index, made where it is not kept in `directory`. It can be shown before it is on
/// the disk for good, which `images` sees to: an index that a power cut took is made anew.
///
/// `lowest`: nothing lies below it. Else `below` is asked about the directories that the layer only
/// implies, and describes those that it knows. A `directory` is for one place of the layer: what lies
/// below it there never changes.
pub fn index_layer(
    images: &Images,
    layer: &OpenLayer,
    lowest: bool,
    directory: &Path,
    below: impl FnOnce(&[Vec<u8>]) -> Vec<Described>,
) -> Result<MountLayer, ShowError> {
    fs::create_dir_all(directory)
        .map_err(|source| ShowError::State { path: directory.to_owned(), source })?;
    let alone = Plan::alone(layer, lowest);
    if lowest {
        let made = alone.index(directory, images.later())?;
        return Ok(mount_layer(layer, made.path, &made.note));
    }
    let plan = alone.upon();
    let made = match plan.kept(directory) {
        Some(made) => made,
        None => {
            let tree = layer.tree(plan.options())?;
            let implied = implied(&tree);
            let described = if implied.is_empty() { Vec::new() } else { below(&implied) };
            let tree = plan.describe(tree, described)?;
            plan.keep(directory, plan.fresh(&tree, implied)?, images.later())?
        }
    };
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

    /// The same over the layers of its only place.
    fn upon(self) -> Self {
        Self { key: format!("{}-upon", self.key), ..self }
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

    fn index(&self, directory: &Path, later: &Later) -> Result<Made, ShowError> {
        self.described(directory, Vec::new(), later)
    }

    /// With these directories in front of the layer's own entries.
    fn described(
        &self,
        directory: &Path,
        described: Vec<Described>,
        later: &Later,
    ) -> Result<Made, ShowError> {
        if let Some(made) = self.kept(directory) {
            return Ok(made);
        }
        let before: Vec<Record> = described.into_iter().map(record).collect();
        let tree = self.layer.tree_with(self.options(), &before)?;
        self.keep(directory, self.fresh(&tree, implied(&tree))?, later)
    }

    /// Put a fresh index into `directory`; `later` brings it to the disk for good.
    fn keep(&self, directory: &Path, fresh: Fresh, later: &Later) -> Result<Made, ShowError> {
        let path = directory.join(&self.key);
        let Fresh { note, bytes, implied } = fresh;
        let file = write(&path, &bytes)
            .map_err(|source| ShowError::State { path: path.clone(), source })?;
        let (sealing, note_path) = (note.clone(), note_path(&path));
        later.add(move || match seal(&file, sealing, &note_path) {
            // What it was for went sooner.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(note = %note_path.display(), %error, "an index is not kept");
            }
            Ok(()) => {}
        });
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

    fn fresh(&self, tree: &Tree, implied: Vec<Vec<u8>>) -> Result<Fresh, ShowError> {
        let tag = self.layer.descriptor.digest.hex().to_string();
        let device = Device { len: self.layer.content.len(), tag: tag.as_bytes() };
        let index = erofs::write_ways(tree, &[device], LARGE_LEN_MIN)
            .map_err(|error| self.layer.bad(&error))?;
        let copies = index.copies.iter();
        let note = Note {
            format: FORMAT,
            seal: None,
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
    let seal = note.seal.as_ref()?;
    let sealed = || Some(Stamp::of(&fs::metadata(path).ok()?) == seal.stamp);
    let equal = || Some(Digest::of(&fs::read(path).ok()?) == seal.digest);
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
    let seal = Some(Seal { digest: digest(file)?, stamp: Stamp::of(&file.metadata()?) });
    replace(note_path, &serde_json::to_vec(&Note { seal, ..note })?)
}

fn digest(file: &File) -> io::Result<Digest> {
    let (mut hasher, mut at) = (Hasher::new(Algorithm::Sha256), 0);
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let len = file.read_at(&mut piece, at)?;
        let Some(read @ [_, ..]) = piece.get(..len) else { return Ok(hasher.finish()) };
        hasher.update(read);
        at += len as u64;
    }
}

/// Bytes of an index that are looked at together.
const PIECE_LEN: usize = 1 << 20;

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
