//! An image of a given size, made from programs and libraries of this machine.
//!
//! Three kinds of layers, as real images have them: the programs with their libraries, the runtime's
//! own files, and much that the start does not touch. Each is one gzip member, as engines write it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use libdeflater::{CompressionLvl, Compressor};
use serde_json::json;
use spanfs_layer::Digest;

use super::programs::{self, Program};

/// What a path of the image must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Directory { mode: u32 },
    Symlink { target: PathBuf },
    File { mode: u32, mtime: i64, len: u64, digest: Digest },
}

/// The image that was made: an OCI layout, and what is in it.
#[derive(Debug)]
pub(super) struct Made {
    #[cfg(test)]
    pub(super) command: Vec<String>,
    pub(super) contents: BTreeMap<PathBuf, Expected>,
    pub(super) compressed_bytes: u64,
    pub(super) uncompressed_bytes: u64,
    pub(super) layer_count: usize,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error("this machine has no native python3, perl or shell to make an image of")]
    NoProgram,
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("stopped")]
    Stopped,
}

/// Uncompressed bytes of a layer: two of them and their compressed forms fit into memory.
const LAYER_BYTES_MAX: u64 = 96 << 20;
/// Entries of a layer.
const LAYER_ENTRIES_MAX: usize = 20_000;
/// zlib's default is 6; libdeflate's 4 gives about the same size in a third of the time.
const GZIP_LEVEL: i32 = 4;
/// Where content that no program needs is taken from, until the image is large enough.
const FILLERS: [&str; 4] = ["/usr/lib", "/usr/share", "/usr/libexec", "/usr/local"];

/// Make an image of about `size` uncompressed bytes in the directory `layout`.
pub(super) fn make(layout: &Path, size: u64, stop: &AtomicBool) -> Result<Made, MakeError> {
    let programs = programs::find();
    let Some(first) = programs.first() else { return Err(MakeError::NoProgram) };
    let layers = plan(&programs, size, stop)?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let built = build(layout, layers, stop)?;
    let made = finish(layout, &built, first.command.clone())?;
    Ok(made)
}

/// Names and metadata of what goes into one layer, parents before children.
#[derive(Debug, Default)]
struct Plan {
    entries: Vec<(PathBuf, Metadata)>,
    /// Directories among them.
    directories: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Plan {
    /// Take an entry with the directories above it: a layer that leaves them out would give them new
    /// attributes wherever it is stacked.
    fn push(&mut self, path: PathBuf, metadata: Metadata) {
        let above: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        for directory in above.into_iter().rev().filter(|it| it.parent().is_some()) {
            if !self.directories.contains(&directory)
                && let Ok(metadata) = fs::symlink_metadata(&directory)
            {
                self.directories.insert(directory.clone());
                self.entries.push((directory, metadata));
            }
        }
        if !metadata.is_dir() || self.directories.insert(path.clone()) {
            self.entries.push((path, metadata));
        }
    }
}

/// Distributes paths over layers, each path once.
struct Planner<'a> {
    seen: BTreeSet<PathBuf>,
    layers: Vec<Plan>,
    bytes: u64,
    size: u64,
    stop: &'a AtomicBool,
}

fn plan(programs: &[Program], size: u64, stop: &AtomicBool) -> Result<Vec<Plan>, MakeError> {
    let layers = vec![Plan::default()];
    let mut planner = Planner { seen: BTreeSet::new(), layers, bytes: 0, size, stop };
    for path in ["/tmp", "/proc", "/dev", "/sys", "/etc"] {
        planner.add(Path::new(path), LINKS_MAX);
    }
    for path in programs.iter().flat_map(|program| &program.closure) {
        planner.add(path, LINKS_MAX);
    }
    planner.next_layer();
    for directory in programs.iter().flat_map(|program| &program.directories) {
        planner.add(directory, LINKS_MAX);
        // Below where its symbolic links lead.
        if let Ok(directory) = directory.canonicalize() {
            planner.add_tree(&directory, Extent::Whole, 0)?;
        }
    }
    planner.next_layer();
    for directory in FILLERS.map(Path::new) {
        if let Ok(resolved) = directory.canonicalize() {
            planner.add(directory, LINKS_MAX);
            planner.add_tree(&resolved, Extent::UntilFull, 0)?;
        }
    }
    planner.layers.retain(|layer| !layer.entries.is_empty());
    Ok(planner.layers)
}

/// How much of a directory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All: a runtime needs all of itself.
    Whole,
    /// Until the image is large enough.
    UntilFull,
}

/// Large parts of runtimes that no program needs.
const LEFT_OUT: [&str; 5] = ["site-packages", "dist-packages", "test", "tests", "__pycache__"];

/// Symbolic links followed for one path, as the kernel limits them.
const LINKS_MAX: usize = 40;
const DEPTH_MAX: usize = 32;

impl Planner<'_> {
    fn full(&self) -> bool {
        self.bytes >= self.size
    }

    fn next_layer(&mut self) {
        self.layers.push(Plan::default());
    }

    /// Take a path with every directory and symbolic link on the way to it.
    fn add(&mut self, path: &Path, links: usize) {
        let mut walked = PathBuf::from("/");
        let mut components = path.components().collect::<VecDeque<_>>();
        while let Some(component) = components.pop_front() {
            match component {
                Component::Normal(name) => walked.push(name),
                Component::ParentDir => drop(walked.pop()),
                _ => continue,
            }
            let Ok(metadata) = fs::symlink_metadata(&walked) else { return };
            if metadata.is_symlink() {
                let Ok(target) = fs::read_link(&walked) else { return };
                self.take(walked.clone(), metadata);
                let rest: PathBuf = components.iter().collect();
                let next = walked.parent().unwrap_or(Path::new("/")).join(target).join(rest);
                if links > 0 {
                    self.add(&next, links - 1);
                }
                return;
            }
            self.take(walked.clone(), metadata);
        }
    }

    fn take(&mut self, path: PathBuf, metadata: Metadata) {
        let wanted = metadata.is_dir() || metadata.is_symlink() || metadata.is_file();
        if !wanted || !self.seen.insert(path.clone()) {
            return;
        }
        let bytes = if metadata.is_file() { metadata.len() } else { 0 };
        let last = self.layers.last().map_or(0, |layer| layer.bytes);
        let entries = self.layers.last().map_or(0, |layer| layer.entries.len());
        if last > 0 && last + bytes > LAYER_BYTES_MAX || entries >= LAYER_ENTRIES_MAX {
            self.next_layer();
        }
        if let Some(layer) = self.layers.last_mut() {
            layer.push(path, metadata);
            layer.bytes += bytes;
            self.bytes += bytes;
        }
    }

    /// Take what is below a directory, in order of name. Files too large for a layer are left out,
    /// and so is what the user may not read.
    fn add_tree(
        &mut self,
        directory: &Path,
        extent: Extent,
        depth: usize,
    ) -> Result<(), MakeError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(MakeError::Stopped);
        }
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if extent == Extent::UntilFull && self.full() {
                return Ok(());
            }
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_file() && metadata.len() > (self.size / 8).min(LAYER_BYTES_MAX) {
                continue;
            }
            let is_directory = metadata.is_dir();
            self.take(path.clone(), metadata);
            let left_out =
                path.file_name().is_some_and(|name| LEFT_OUT.iter().any(|it| name == *it));
            if is_directory && !left_out {
                self.add_tree(&path, extent, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// A layer as it stands in the layout.
#[derive(Debug)]
struct Built {
    digest: Digest,
    len: u64,
    diff_id: Digest,
    uncompressed_len: u64,
    contents: BTreeMap<PathBuf, Expected>,
}

/// Build all layers, two at a time.
fn build(layout: &Path, plans: Vec<Plan>, stop: &AtomicBool) -> Result<Vec<Built>, MakeError> {
    let plans = Mutex::new(plans.into_iter().enumerate().collect::<VecDeque<_>>());
    let built = Mutex::new(Vec::new());
    let lock = "no thread panics with the lock held";
    let work = || -> Result<(), MakeError> {
        loop {
            let Some((index, plan)) = plans.lock().expect(lock).pop_front() else { return Ok(()) };
            let layer = build_layer(layout, &plan, stop)?;
            built.lock().expect(lock).push((index, layer));
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().try_for_each(|thread| thread.join().expect("build_layer panics not"))
    })?;
    let mut built = built.into_inner().expect(lock);
    built.sort_by_key(|(index, _)| *index);
    Ok(built.into_iter().map(|(_, layer)| layer).collect())
}

fn build_layer(layout: &Path, plan: &Plan, stop: &AtomicBool) -> Result<Built, MakeError> {
    let mut contents = BTreeMap::new();
    let mut tar = tar::Builder::new(Vec::with_capacity(plan.bytes as usize + (4 << 20)));
    let in_memory = |source| MakeError::Write { path: PathBuf::from("a tar in memory"), source };
    for (path, metadata) in &plan.entries {
        if stop.load(Ordering::Relaxed) {
            return Err(MakeError::Stopped);
        }
        if let Some(expected) = append(&mut tar, path, metadata).map_err(in_memory)? {
            contents.insert(path.clone(), expected);
        }
    }
    let tar = tar.into_inner().map_err(in_memory)?;
    let level = CompressionLvl::new(GZIP_LEVEL).expect("a level that libdeflate has");
    let mut compressor = Compressor::new(level);
    let mut blob = vec![0; compressor.gzip_compress_bound(tar.len())];
    let len = compressor.gzip_compress(&tar, &mut blob).expect("the bound suffices");
    blob.truncate(len);
    let (digest, diff_id) = (Digest::of(&blob), Digest::of(&tar));
    put_blob(layout, &digest, &blob)?;
    let uncompressed_len = tar.len() as u64;
    Ok(Built { digest, len: len as u64, diff_id, uncompressed_len, contents })
}

/// Append an entry; `None` if this user may not read it, or it vanished or changed meanwhile.
fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &Path,
    metadata: &Metadata,
) -> io::Result<Option<Expected>> {
    let name = path.strip_prefix("/").unwrap_or(path);
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    // Nothing of the demo may gain privileges, wherever its image ends up.
    let mode = metadata.mode() & 0o1777;
    header.set_mode(mode);
    let mtime = metadata.mtime().max(0);
    header.set_mtime(mtime.unsigned_abs());
    if metadata.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        tar.append_data(&mut header, name, io::empty())?;
        return Ok(Some(Expected::Directory { mode }));
    }
    if metadata.is_symlink() {
        let Ok(target) = fs::read_link(path) else { return Ok(None) };
        header.set_entry_type(tar::EntryType::Symlink);
        tar.append_link(&mut header, name, &target)?;
        return Ok(Some(Expected::Symlink { target }));
    }
    let Ok(content) = fs::read(path) else { return Ok(None) };
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content.as_slice())?;
    let (len, digest) = (content.len() as u64, Digest::of(&content));
    Ok(Some(Expected::File { mode, mtime, len, digest }))
}

/// Config, manifest and index of the layout.
fn finish(layout: &Path, built: &[Built], command: Vec<String>) -> Result<Made, MakeError> {
    let diff_ids: Vec<&Digest> = built.iter().map(|layer| &layer.diff_id).collect();
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": command },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers = built.iter().map(|layer| {
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.digest, layer.len)
    });
    let (config, config_len) = put_json(layout, &config)?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config, config_len),
        "layers": layers.collect::<Vec<_>>(),
    });
    let (manifest, manifest_len) = put_json(layout, &manifest)?;
    let mut named = descriptor(manifest_type, &manifest, manifest_len);
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": "plain" });
    named["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [named] });
    write(&layout.join("index.json"), index.to_string().as_bytes())?;
    Ok(Made {
        #[cfg(test)]
        command,
        contents: built.iter().flat_map(|layer| layer.contents.clone()).collect(),
        compressed_bytes: built.iter().map(|layer| layer.len).sum(),
        uncompressed_bytes: built.iter().map(|layer| layer.uncompressed_len).sum(),
        layer_count: built.len(),
    })
}

/// This machine's architecture by its name in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(media_type: &str, digest: &Digest, len: u64) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest, "size": len })
}

fn put_json(layout: &Path, value: &serde_json::Value) -> Result<(Digest, u64), MakeError> {
    let text = value.to_string();
    let digest = Digest::of(text.as_bytes());
    put_blob(layout, &digest, text.as_bytes())?;
    Ok((digest, text.len() as u64))
}

fn put_blob(layout: &Path, digest: &Digest, bytes: &[u8]) -> Result<(), MakeError> {
    let directory = layout.join("blobs").join(digest.algorithm().name());
    fs::create_dir_all(&directory)
        .map_err(|source| MakeError::Write { path: directory.clone(), source })?;
    write(&directory.join(digest.hex().to_string()), bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), MakeError> {
    fs::write(path, bytes).map_err(|source| MakeError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// The layers, unpacked by other code than made them, hold what the source is said to hold.
    #[test]
    fn layers_hold_what_is_expected() {
        let layout = tempfile::tempdir().unwrap();
        let made = match make(layout.path(), 40 << 20, &AtomicBool::new(false)) {
            Err(MakeError::NoProgram) => return eprintln!("skipped: no native program here"),
            made => made.unwrap(),
        };
        assert!(made.contents.contains_key(Path::new(&made.command[0])), "{:?}", made.command);
        let blobs = layout.path().join("blobs/sha256");
        let mut found = BTreeMap::new();
        for blob in fs::read_dir(blobs).unwrap() {
            let bytes = fs::read(blob.unwrap().path()).unwrap();
            if !bytes.starts_with(&[0x1f, 0x8b]) {
                continue;
            }
            let len = u32::from_le_bytes(*bytes.last_chunk().unwrap()) as usize;
            let mut tar = vec![0; len];
            libdeflater::Decompressor::new().gzip_decompress(&bytes, &mut tar).unwrap();
            for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = Path::new("/").join(entry.path().unwrap());
                let path: PathBuf = path.components().collect();
                let mode = entry.header().mode().unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                let expected = match entry.header().entry_type() {
                    tar::EntryType::Directory => Expected::Directory { mode },
                    tar::EntryType::Symlink => {
                        Expected::Symlink { target: entry.link_name().unwrap().unwrap().into() }
                    }
                    _ => Expected::File {
                        mode,
                        mtime: entry.header().mtime().unwrap() as i64,
                        len: content.len() as u64,
                        digest: Digest::of(&content),
                    },
                };
                let again = found.insert(path, expected.clone());
                assert!(again.is_none_or(|again| again == expected), "the same in every layer");
            }
        }
        assert!(found == made.contents);
    }

    #[test]
    fn a_stop_ends_it() {
        let layout = tempfile::tempdir().unwrap();
        let result = make(layout.path(), 40 << 20, &AtomicBool::new(true));
        assert!(matches!(result, Err(MakeError::Stopped | MakeError::NoProgram)));
    }
}
