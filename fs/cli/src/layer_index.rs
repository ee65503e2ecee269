//! Layer indexes: made from the layers' entries, kept on disk by what they were made from.
//!
//! A directory that a layer only implies has the attributes of the same directory in the layers
//! below, as containerd's applier gives it them; a tar alone can't tell them. The index of such a
//! layer depends on what lies below, and is kept by that as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spanfs_layer::erofs::{self, DataCopy, Device};
use spanfs_layer::tree::{NodeKind, Tree, TreeOptions, Whiteouts};
use spanfs_layer::{Digest, Kind, Record, UncompressedOffset};
use spanfs_mount::Layer as MountLayer;

use crate::image::{ImageError, Layers, OpenLayer, replace};
use crate::mounted::ShowError;
use crate::side_by_side::{cores, side_by_side};

/// What is to be known of a kept index. Changing it makes older ones be made anew.
#[derive(Serialize, Deserialize)]
struct Note {
    format: u32,
    digest: Digest,
    data_len: u64,
    /// From, to, whereto.
    copies: Vec<(u64, u64, u64)>,
    /// Whether the layer implies directories.
    implied: bool,
}

const FORMAT: u32 = 2;

/// Layers with their indexes, made side by side where they are not kept in `directory`.
pub(crate) fn indexed(
    layers: &Layers,
    bare_layer: bool,
    directory: &Path,
) -> Result<Vec<MountLayer>, ShowError> {
    fs::create_dir_all(directory)
        .map_err(|source| ShowError::State { path: directory.to_owned(), source })?;
    let made = side_by_side(&layers.layers, cores(), |number, layer| {
        let alone = Plan::alone(layer, number == 0 && !bare_layer);
        let (path, note) = alone.index(directory)?;
        if number == 0 || !note.implied {
            return Ok(mount_layer(layer, path, &note));
        }
        let (path, note) = alone.over(&layers.below(number)).index(directory)?;
        Ok(mount_layer(layer, path, &note))
    });
    made.into_iter().collect()
}

/// An index to be had.
struct Plan<'a> {
    layer: &'a OpenLayer,
    whiteouts: Whiteouts,
    key: String,
    below: Option<Layers>,
}

impl<'a> Plan<'a> {
    /// The index of a layer by itself. Nothing lies below the lowest layer of an image, so that its
    /// whiteouts would hide nothing and only show.
    fn alone(layer: &'a OpenLayer, lowest: bool) -> Self {
        let (whiteouts, suffix) =
            if lowest { (Whiteouts::Suppress, "-lowest") } else { (Whiteouts::Show, "") };
        let key = format!("{}{suffix}", layer.index_key());
        Self { layer, whiteouts, key, below: None }
    }

    fn over(self, below: &Layers) -> Self {
        let keys: Vec<String> = below.layers.iter().map(OpenLayer::index_key).collect();
        let key = format!("{}-over-{}", self.key, Digest::of(keys.join(" ").as_bytes()).hex());
        Self { key, below: Some(below.clone()), ..self }
    }

    fn index(&self, directory: &Path) -> Result<(PathBuf, Note), ShowError> {
        let path = directory.join(&self.key);
        let note_path = path.with_extension("json");
        let note = match kept(&path, &note_path) {
            Some(note) => note,
            None => self.make(&path, &note_path)?,
        };
        Ok((path, note))
    }

    fn make(&self, path: &Path, note_path: &Path) -> Result<Note, ShowError> {
        let digest = self.layer.descriptor.digest;
        let bad = |reason: String| ImageError::Corrupt(format!("layer {digest}: {reason}"));
        let options = TreeOptions { whiteouts: self.whiteouts, ..TreeOptions::default() };
        let mut tree = self.layer.tree(options.clone())?;
        let implied = tree.nodes().any(|node| node.is_implied());
        if let Some(below) = &self.below {
            let described = described_below(&tree, &below.merged()?);
            tree = self.layer.tree_with(options, &described)?;
        }
        let tag = digest.hex().to_string();
        let device = Device { len: self.layer.content.len(), tag: tag.as_bytes() };
        let index = erofs::write(&tree, &[device]).map_err(|error| bad(error.to_string()))?;
        let copies = index.copies.iter();
        let note = Note {
            format: FORMAT,
            digest: Digest::of(&index.bytes),
            data_len: index.data_lens.first().copied().unwrap_or(device.len),
            copies: copies.map(|it| (it.from.start.0, it.from.end.0, it.to.0)).collect(),
            implied,
        };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        replace(path, &index.bytes)
            .and_then(|()| replace(note_path, &text))
            .map_err(|source| ShowError::State { path: path.to_owned(), source })?;
        Ok(note)
    }
}

/// The kernel gets no index that is not byte for byte what we wrote.
fn kept(path: &Path, note_path: &Path) -> Option<Note> {
    let note: Note = serde_json::from_slice(&fs::read(note_path).ok()?).ok()?;
    let sound = note.format == FORMAT && Digest::of(&fs::read(path).ok()?) == note.digest;
    sound.then_some(note)
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

/// Entries for the directories that `tree` implies and `below` describes.
fn described_below(tree: &Tree, below: &Tree) -> Vec<Record> {
    let mut records = Vec::new();
    let mut directories = vec![(tree.root(), below.root(), Vec::new())];
    while let Some((directory, lower, path)) = directories.pop() {
        for (name, id) in tree.children(directory) {
            let is_directory =
                |node: &spanfs_layer::tree::Node<'_>| node.kind() == NodeKind::Directory;
            let Some(node) = tree.node(id).filter(is_directory) else { continue };
            let Some(lower) = below.lookup(lower, name) else { continue };
            let Some(described) = below.node(lower).filter(is_directory) else { continue };
            let path = [path.as_slice(), name, b"/"].concat();
            if node.is_implied() && !described.is_implied() {
                records.push(Record {
                    name: path.clone(),
                    kind: Kind::Directory,
                    typeflag: b'5',
                    link: Vec::new(),
                    mode: described.permissions().into(),
                    uid: described.uid().into(),
                    gid: described.gid().into(),
                    uname: Vec::new(),
                    gname: Vec::new(),
                    mtime: described.mtime(),
                    devmajor: 0,
                    devminor: 0,
                    pax: described
                        .xattrs()
                        .map(|(name, value)| ([b"SCHILY.xattr.", name].concat(), value.to_owned()))
                        .collect(),
                    header: UncompressedOffset(0),
                    data: UncompressedOffset(0),
                    size: 0,
                    sparse: None,
                });
            }
            directories.push((id, lower, path));
        }
    }
    records
}
