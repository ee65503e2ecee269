//! `soci convert --standalone`: from one OCI layout to another, without containerd.
//!
//! The new layout is made beside its destination and takes its place when it is whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spanfs_fetch::LayoutWriter;
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, media_type};
use tempfile::TempDir;

use super::super::SociError;
use super::super::artifacts::Artifacts;
use super::super::build::Builder;
use super::super::error::go_text;
use super::super::grammar::Arguments;
use super::super::life::{Life, blocking};
use super::super::output::Output;
use super::super::platforms::Platforms;
use super::super::session::build_options;
use super::super::store::{DOCUMENT_LEN_MAX, LayoutStore, Store};
use super::convert;

pub(in crate::soci) async fn convert(
    arguments: &Arguments,
    output: &Output,
    life: &Life,
) -> Result<(), SociError> {
    let (input, destination) = convert::arguments(arguments)?;
    let (input, destination) = (PathBuf::from(input), PathBuf::from(destination));
    let options = build_options(arguments)?;
    let platforms = Platforms::of(arguments)?;
    let source = open(&input)?;
    let work = Scratch::beside(&destination, life)?;
    let layout = work.path("layout");
    let new = LayoutStore::scratch(&layout)?;
    let writer = new.writer()?;
    work.clone().with(move |work| copy_blobs(&input, &writer, work)).await?;
    let target = root(&source, &Store::Layout(new.clone())).await?;
    let builder = Builder {
        // All that was copied, and the root if it had to be made anew.
        images: Store::Layout(new.clone()),
        targets: vec![Store::Layout(new)],
        records: Artifacts::at(&work.path("")),
        output: output.clone(),
        options,
    };
    let root = convert::run(&builder, &target, &platforms).await?;
    list_only(&layout, &root)?;
    let is_directory = arguments.text("format") == Some("oci-dir");
    let finish = move |work: &Scratch| match is_directory {
        true => replace_directory(&layout, &destination),
        false => write_archive(&layout, work, &destination),
    };
    work.with(finish).await
}

/// A directory beside the destination, so that what is made there can take its place. It goes with the
/// last who works in it.
#[derive(Clone)]
struct Scratch {
    directory: Arc<TempDir>,
    life: Life,
}

impl Scratch {
    fn beside(destination: &Path, life: &Life) -> Result<Self, SociError> {
        let parent = destination.parent().filter(|path| !path.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let directory = tempfile::Builder::new().prefix(".soci-").tempdir_in(parent);
        let directory = directory.map_err(|error| SociError::disk("mkdir", parent, error))?;
        Ok(Self { directory: Arc::new(directory), life: life.clone() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Run what copies whole blobs where it holds nobody up.
    async fn with(
        self,
        work: impl FnOnce(&Self) -> Result<(), SociError> + Send + 'static,
    ) -> Result<(), SociError> {
        blocking(move || work(&self)).await?
    }

    /// A reader that ends with the command.
    fn watched<R>(&self, inner: R) -> Watched<'_, R> {
        Watched { inner, life: &self.life }
    }
}

struct Watched<'a, R> {
    inner: R,
    life: &'a Life,
}

impl<R: io::Read> io::Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.life.check()?;
        self.inner.read(buffer)
    }
}

fn open(input: &Path) -> Result<LayoutStore, SociError> {
    let failed = |error: &io::Error| {
        let (path, text) = (input.display(), go_text(error));
        SociError::said(format!("failed to access input {path}: stat {path}: {text}"))
    };
    let store = match fs::metadata(input).map_err(|error| failed(&error))?.is_dir() {
        true => LayoutStore::directory(input)?,
        false => LayoutStore::archive(input).map_err(no_index)?,
    };
    store.open().map_err(no_index)?.index().map_err(|error| no_index(error.into()))?;
    Ok(store)
}

fn no_index(error: SociError) -> SociError {
    SociError::said(format!("failed to read index.json: {error}"))
}

/// What is converted: the only image, the only index, or all that `index.json` lists, as one index.
/// Manifests whose blobs are not there are left out.
async fn root(source: &LayoutStore, new: &Store) -> Result<Descriptor, SociError> {
    let listed = source.open()?.index()?.manifests;
    let (mut root, single) = match listed.as_slice() {
        [] => return Err(SociError::said("index.json contains no manifests")),
        [only] if !media_type::is_index(&only.media_type) => return Ok(only.clone()),
        [only] => {
            let bytes = new.bytes(&only.digest, DOCUMENT_LEN_MAX).await?;
            let what = || format!("reading {}", only.digest);
            let index = Index::parse(&bytes);
            let index = index.map_err(|source| SociError::Document { what: what(), source })?;
            (index, Some(only.clone()))
        }
        _ => (source.open()?.index()?, None),
    };
    let before = root.manifests.len();
    let mut there = Vec::new();
    for entry in root.manifests {
        if new.has(&entry.digest).await? {
            there.push(entry);
        }
    }
    root.manifests = there;
    if root.manifests.is_empty() {
        return Err(SociError::said("manifest list contains no entries with available blobs"));
    }
    if let Some(single) = single.filter(|_| root.manifests.len() == before) {
        return Ok(single);
    }
    root.media_type = media_type::INDEX.to_owned();
    let bytes = root.to_canonical();
    new.put(&bytes, &Default::default()).await?;
    Ok(Descriptor::of(media_type::INDEX, &bytes))
}

/// Limit on a file of a few words.
const MARKER_LEN_MAX: u64 = 4096;

/// Copy the layout's marker and every blob, checked on the way. All else is left behind.
fn copy_blobs(input: &Path, writer: &LayoutWriter, work: &Scratch) -> Result<(), SociError> {
    let disk = |error| SociError::disk("read", input, error);
    let file = File::open(input).map_err(disk)?;
    if file.metadata().map_err(disk)?.is_dir() {
        for digest in digests(input)? {
            let path = input.join(blob_path(&digest));
            let blob = File::open(&path).map_err(|error| SociError::disk("open", &path, error))?;
            writer.put_blob(&digest, work.watched(blob))?;
        }
        let path = input.join(MARKER);
        let marker = File::open(&path).map_err(|error| SociError::disk("open", &path, error))?;
        return copy_marker(marker, work);
    }
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    for entry in archive.entries().map_err(disk)? {
        let entry = entry.map_err(disk)?;
        let name = entry.path_bytes().into_owned();
        let is_file = entry.header().entry_type().is_file();
        if let Some(digest) = digest_of(&name).filter(|_| is_file) {
            writer.put_blob(&digest, work.watched(entry))?;
        } else if is_file && name.strip_prefix(b"./").unwrap_or(&name) == MARKER.as_bytes() {
            copy_marker(entry, work)?;
        }
    }
    Ok(())
}

const MARKER: &str = "oci-layout";

fn copy_marker(marker: impl io::Read, work: &Scratch) -> Result<(), SociError> {
    let path = work.path("layout").join(MARKER);
    let mut text = Vec::new();
    let read = marker.take(MARKER_LEN_MAX).read_to_end(&mut text);
    let copied = read.and_then(|_| fs::write(&path, text));
    copied.map_err(|error| SociError::disk("write", &path, error))
}

/// The digest that a member `blobs/ALGORITHM/HEX` of an archive is named by.
fn digest_of(name: &[u8]) -> Option<Digest> {
    let name = std::str::from_utf8(name).ok()?.trim_start_matches("./");
    name.strip_prefix("blobs/")?.replacen('/', ":", 1).parse().ok()
}

fn blob_path(digest: &Digest) -> PathBuf {
    PathBuf::from(format!("blobs/{}/{}", digest.algorithm().name(), digest.hex()))
}

fn digests(layout: &Path) -> Result<Vec<Digest>, SociError> {
    let blobs = LayoutStore::directory(layout)?.blobs()?;
    let mut digests: Vec<Digest> = blobs.into_iter().map(|it| it.digest).collect();
    digests.sort();
    Ok(digests)
}

/// `index.json` of the new layout: nothing but the new image.
fn list_only(layout: &Path, root: &Descriptor) -> Result<(), SociError> {
    let mut index = spanfs_layer::soci::index_of_one(root, Default::default());
    for entry in &mut index.manifests {
        entry.platform = None;
    }
    let path = layout.join("index.json");
    fs::write(&path, index.to_canonical()).map_err(|error| SociError::disk("write", &path, error))
}

fn replace_directory(layout: &Path, destination: &Path) -> Result<(), SociError> {
    let disk = |attempt| move |error| SociError::disk(attempt, destination, error);
    // All of it reaches the disk before the directory gets its name.
    for name in names(layout)? {
        let synced = File::open(layout.join(&name)).and_then(|file| file.sync_data());
        synced.map_err(|error| SociError::disk("sync", &layout.join(&name), error))?;
    }
    match fs::symlink_metadata(destination) {
        Ok(it) if it.is_dir() => fs::remove_dir_all(destination).map_err(disk("remove"))?,
        Ok(_) => fs::remove_file(destination).map_err(disk("remove"))?,
        Err(_) => {}
    }
    fs::rename(layout, destination).map_err(disk("rename"))
}

fn write_archive(layout: &Path, work: &Scratch, destination: &Path) -> Result<(), SociError> {
    let archive = &work.path("archive");
    let disk = |error| SociError::disk("write", archive, error);
    let file = File::create(archive).map_err(disk)?;
    let mut tar = tar::Builder::new(io::BufWriter::new(file));
    for name in names(layout)? {
        let path = layout.join(&name);
        let mut file = File::open(&path).map_err(|error| SociError::disk("open", &path, error))?;
        let len = file.metadata().map_err(disk)?.len();
        let mut header = tar::Header::new_ustar();
        header.set_size(len);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        // Equal images give equal archives: no time, no owner.
        header.set_mtime(0);
        let content = work.watched(file.by_ref().take(len));
        tar.append_data(&mut header, &name, content).map_err(disk)?;
    }
    let file = tar.into_inner().and_then(|buffer| Ok(buffer.into_inner()?)).map_err(disk)?;
    file.sync_all().map_err(disk)?;
    fs::rename(archive, destination).map_err(|error| SociError::disk("rename", destination, error))
}

/// Files of a layout, the documents first.
fn names(layout: &Path) -> Result<Vec<PathBuf>, SociError> {
    let mut names = vec![PathBuf::from(MARKER), PathBuf::from("index.json")];
    names.extend(digests(layout)?.iter().map(blob_path));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_archives() {
        let digest = Digest::of(b"x");
        let path = blob_path(&digest).display().to_string();
        assert_eq!(digest_of(path.as_bytes()), Some(digest));
        assert_eq!(digest_of(format!("./{path}").as_bytes()), Some(digest));
        for other in ["index.json", "blobs/sha256/12", "blobs/md5/../../etc"] {
            assert_eq!(digest_of(other.as_bytes()), None, "{other}");
        }
    }
}
