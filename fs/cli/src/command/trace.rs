//! `spanfs trace`: the record of an image's start, out of this machine's cache and into it.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::json;
use spanfs_cache::{Cache, CacheOptions, Trace as Record};
use spanfs_layer::Digest;

use crate::arguments::{self, CacheDir, Trace, TraceExport, TraceImport};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::session::{Reached, image_failure};
use crate::settings::{self, Facts};

/// Records are bounded by their count of reads; a longer text is none.
const TEXT_LEN_MAX: u64 = 8 << 20;

pub(crate) fn trace(arguments: &Trace, output: &Output) -> Result<(), Failure> {
    match arguments {
        Trace::Export(arguments) => export(arguments, output),
        Trace::Import(arguments) => import(arguments, output),
    }
}

fn export(arguments: &TraceExport, output: &Output) -> Result<(), Failure> {
    let image = &arguments.image.image;
    let attempted = || format!("exporting the trace of {image}");
    let (path, _) = place(&arguments.image, &arguments.cache)?;
    let record = Record::read(&path)
        .map_err(|error| Failure::caused(Code::Corrupt, attempted(), &error))?
        .ok_or_else(|| {
            let reason = format!("no start of it was recorded ({} is not there)", path.display());
            Failure::new(Code::NotFound, attempted(), reason)
                .advise("mount it, use it, unmount it; --cache-dir names another cache")
        })?;
    let runs = record.runs.len();
    match &arguments.file {
        None => output.raw(record.to_text().as_bytes()),
        Some(file) => fs::write(file, record.to_text()),
    }
    .map_err(|error| Failure::io(attempted(), &error))?;
    match &arguments.file {
        Some(file) if output.json => output.json(&json!({ "file": file, "runs": runs })),
        Some(file) => output.note(format_args!("{runs} reads written to {}", file.display())),
        None => {}
    }
    Ok(())
}

fn import(arguments: &TraceImport, output: &Output) -> Result<(), Failure> {
    let image = &arguments.image.image;
    let attempted = || format!("importing {} for {image}", arguments.file.display());
    let text = read(&arguments.file).map_err(|error| Failure::io(attempted(), &error))?;
    let record = Record::parse(&text)
        .map_err(|error| Failure::caused(Code::Corrupt, attempted(), &error))?;
    let (path, layers) = place(&arguments.image, &arguments.cache)?;
    if let Some(other) = record.layers.iter().find(|layer| !layers.contains(layer)) {
        let reason = format!("it was recorded of another image: this one has no layer {other}");
        return Err(Failure::new(Code::Corrupt, attempted(), reason));
    }
    record.write(&path).map_err(|error| Failure::caused(Code::Failed, attempted(), &error))?;
    let runs = record.runs.len();
    match output.json {
        true => output.json(&json!({ "file": path, "runs": runs })),
        false => output.note(format_args!("{runs} reads are fetched first from now on")),
    }
    Ok(())
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    match file == Path::new("-") {
        true => io::stdin().take(TEXT_LEN_MAX).read_to_string(&mut text)?,
        false => fs::File::open(file)?.take(TEXT_LEN_MAX).read_to_string(&mut text)?,
    };
    Ok(text)
}

/// Where the cache keeps the record of an image, and the image's layers.
fn place(asked: &arguments::Image, cache: &CacheDir) -> Result<(PathBuf, Vec<Digest>), Failure> {
    let facts = Facts::gather();
    let reaching = settings::reaching(&asked.access, &facts)?;
    let root = settings::cache_dir(cache, &facts)?;
    let image = Reached::find(asked, &reaching, None)?.image;
    let cache = Cache::open(CacheOptions::new(root, 1))
        .map_err(|error| image_failure("opening the cache".to_owned(), &error.into()))?;
    let path = cache.trace_path(&image.documents.manifest.config.digest);
    Ok((path, image.layers().map(|(layer, _)| layer.digest).collect()))
}
