//! The other way: download all layers, unpack them into a directory, then start.
//!
//! As container engines do it: three layers at once over the network, then one after the other onto
//! the disk. It gets our own fetcher with its eight connections, so it is faster than theirs.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use spanfs::image::{Image, read_whole};
use spanfs_cache::build::{BuildOptions, LayerBuilder};
use spanfs_fetch::Priority;
use spanfs_layer::UncompressedOffset;
use spanfs_layer::oci::Descriptor;

use super::{Stages, Started, wait};
use crate::enter::Program;
use crate::failure::{Code, Failure};
use crate::output::Bar;
use crate::session::{Reached, image_failure};
use crate::settings::Reaching;

const ATTEMPTED: &str = "downloading and unpacking the image";
const DOWNLOADS: usize = 3;

pub(crate) fn download_and_start(
    stages: &Stages<'_>,
    reaching: &Reaching,
) -> Result<Started, Failure> {
    if let Some(registry) = stages.registry {
        registry.reset_stats();
    }
    let since = Instant::now();
    let reached = Reached::find(stages.asked, reaching, None)?;
    let image = &reached.image;
    let bytes = image.compressed_bytes();
    let mut bar = stages.output.bar("download and unpack, then start", bytes);
    let files = download(stages, image, &mut bar)?;
    bar.say("unpacking");
    let root = stages.directory.join("unpacked");
    fs::create_dir(&root).map_err(|error| Failure::io(ATTEMPTED, &error))?;
    for file in files {
        stages.check_stop()?;
        unpack(file, &root).map_err(|error| Failure::io(ATTEMPTED, &error))?;
    }
    bar.say("starting");
    let command = match stages.command.is_empty() {
        true => image.documents.config.command().map(str::to_owned).collect(),
        false => stages.command.to_vec(),
    };
    let env = image.documents.config.config.env.iter();
    let env = env.filter_map(|text| text.split_once('='));
    let program = Program {
        root,
        command,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        workdir: Some(image.documents.config.config.working_dir.clone())
            .filter(|workdir| !workdir.is_empty())
            .unwrap_or_else(|| "/".to_owned()),
        user: None,
        isolate: true,
    };
    let text = serde_json::to_string(&program).unwrap_or_default();
    let mut command = Command::new("/proc/self/exe");
    command.arg("__enter").arg(text);
    wait(stages, command, since, bar, bytes)
}

/// All layers in files without names, the lowest first.
fn download(stages: &Stages<'_>, image: &Image, bar: &mut Bar) -> Result<Vec<File>, Failure> {
    let layers: Vec<&Descriptor> = image.layers().map(|(layer, _)| layer).collect();
    let done = AtomicU64::new(0);
    let bar = Mutex::new(bar);
    let mut files = Vec::with_capacity(layers.len());
    for batch in layers.chunks(DOWNLOADS) {
        let fetched: Vec<Result<File, Failure>> = std::thread::scope(|scope| {
            let fetch = |layer: &&Descriptor| {
                let blob = image.source.blob(layer);
                let (done, bar) = (&done, &bar);
                scope.spawn(move || {
                    let blob =
                        blob.map_err(|error| image_failure(ATTEMPTED.to_owned(), &error.into()))?;
                    let file = tempfile::tempfile_in(stages.directory);
                    let mut file = file.map_err(|error| Failure::io(ATTEMPTED, &error))?;
                    let read = read_whole(&*blob, Priority::OnDemand, stages.stop, |bytes| {
                        let len = bytes.len() as u64;
                        let now = done.fetch_add(len, Ordering::Relaxed) + len;
                        if let Ok(mut bar) = bar.lock() {
                            bar.set(now);
                        }
                        file.write_all(bytes)
                    });
                    read.map_err(|error| Failure::caused(Code::Failed, ATTEMPTED, &error))?;
                    Ok(file)
                })
            };
            let threads: Vec<_> = batch.iter().map(fetch).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        for file in fetched {
            files.push(file?);
        }
    }
    Ok(files)
}

/// Inflate and check a layer, and make its files.
fn unpack(mut blob: File, root: &Path) -> io::Result<()> {
    blob.rewind()?;
    let (reader, mut writer) = io::pipe()?;
    std::thread::scope(|scope| {
        let applying = scope.spawn(move || apply(reader, root));
        let sink = move |_: UncompressedOffset, bytes: &[u8]| writer.write_all(bytes);
        let mut builder =
            LayerBuilder::new(BuildOptions::default(), sink).map_err(io::Error::other)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match blob.read(&mut buffer)? {
                0 => break,
                count => builder.feed(&buffer[..count]).map_err(io::Error::other)?,
            }
        }
        // With it goes the writer.
        builder.finish().map_err(io::Error::other)?;
        applying.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Apply a layer's tar to a directory, whiteouts included.
fn apply(mut tar: impl io::Read, root: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(&mut tar);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path: PathBuf = entry.path()?.into_owned();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        match name.as_deref().and_then(|name| name.strip_prefix(".wh.")) {
            Some(".wh..opq") => {}
            Some(hidden) => {
                let hidden = root.join(path.with_file_name(hidden));
                drop(fs::remove_dir_all(&hidden).or_else(|_| fs::remove_file(&hidden)));
            }
            // Devices need root; no demo needs devices.
            None => {
                if !entry.header().entry_type().is_character_special()
                    && !entry.header().entry_type().is_block_special()
                {
                    entry.unpack_in(root)?;
                }
            }
        }
    }
    // What follows the archive's end still comes through the pipe.
    io::copy(&mut tar, &mut io::sink()).map(drop)
}
