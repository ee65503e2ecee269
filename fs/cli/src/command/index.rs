//! `spanfs index`: zTOCs of all layers, and the SOCI index that ties them to the image.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use spanfs::image::{Image, ImageError, Images};
use spanfs::index::{Artifacts, IndexError, IndexOptions, IndexedImage, Outcome};
use spanfs::index::{Source as LayerSource, build, publish, version_1, version_2};
use spanfs_fetch::{ImageRef, LayoutWriter};
use spanfs_layer::oci::Platform;

use crate::arguments::{Index, IndexFormat};
use crate::failure::{Code, Failure};
use crate::output::{Bar, Output};
use crate::quantity::Bytes;
use crate::session::{self, check_platform, code_of, image_failure};
use crate::settings::{self, Facts};
use crate::signals;

pub(crate) fn index(arguments: &Index, output: &Output) -> Result<(), Failure> {
    let attempted = || format!("indexing {}", arguments.image);
    let facts = Facts::gather();
    let reaching = settings::reaching(&arguments.access, &facts)?;
    let target = arguments.output.as_deref().map(target).transpose()?;
    let (images, name) = session::start(&arguments.image, &reaching)?;
    let options = IndexOptions {
        span_size: arguments.span_size.0,
        layer_bytes_min: arguments.min_layer_size.0,
        threads: facts.threads,
    };
    let stop = signals::flag().map_err(|error| Failure::io(attempted(), &error))?;
    let mut indexed = Vec::new();
    for image in find(&images, &name, arguments)? {
        let outcomes = read_layers(&image, &options, &stop, output)?;
        let outcomes = outcomes.map_err(|error| failure(attempted(), &error))?;
        indexed.push(IndexedImage { image, outcomes });
    }
    let artifacts = match arguments.format {
        IndexFormat::V1 => version_1(&indexed, &options),
        IndexFormat::V2 => version_2(&indexed, &options),
    };
    let artifacts = artifacts.map_err(|error| failure(attempted(), &error))?;
    report(&indexed, &artifacts, output);
    let place = match target {
        Some(target) => target,
        None if arguments.format == IndexFormat::V1 => name.clone(),
        None => {
            output.note("nothing was written: --output says where to");
            return Ok(());
        }
    };
    write(&images, &name, &indexed, &artifacts, &place)
        .map(|()| output.note(format_args!("written to {place}")))
}

fn target(text: &str) -> Result<ImageRef, Failure> {
    let attempted = format!("reading the target {text:?}");
    let target: ImageRef =
        text.parse().map_err(|error| Failure::caused(Code::Usage, attempted.clone(), &error))?;
    match target {
        ImageRef::Archive { .. } => {
            Err(Failure::usage(attempted, "an archive can't be written to").advise("use oci:DIR"))
        }
        target => Ok(target),
    }
}

/// The images to index, each once.
fn find(images: &Images, name: &ImageRef, arguments: &Index) -> Result<Vec<Image>, Failure> {
    let failed = |error: ImageError| image_failure(format!("finding the image {name}"), &error);
    let asked = arguments.platform.iter().map(|text| session::platform(text));
    let mut wanted: Vec<Option<Platform>> =
        asked.map(|platform| platform.map(Some)).collect::<Result<_, _>>()?;
    if arguments.all_platforms {
        wanted = images.platforms(name).map_err(failed)?.into_iter().map(Some).collect();
    }
    if wanted.is_empty() {
        // A single image is indexed for whatever machine it is.
        wanted.push(None);
    }
    let mut found: Vec<Image> = Vec::new();
    for platform in wanted {
        let host = Platform::host();
        let image = images.find(name, platform.as_ref().unwrap_or(&host)).map_err(failed)?;
        check_platform(platform.as_ref(), &image).map_err(|error| failed(*error))?;
        let digest = image.documents.descriptor.digest;
        if found.iter().all(|known| known.documents.descriptor.digest != digest) {
            found.push(image);
        }
    }
    Ok(found)
}

fn read_layers(
    image: &Image,
    options: &IndexOptions,
    stop: &AtomicBool,
    output: &Output,
) -> Result<Result<Vec<Outcome>, IndexError>, Failure> {
    let layers = sources(image)?;
    let bars = bars(&layers, output);
    let outcomes = build(&layers, options, stop, &|number, done| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get_mut(number) {
            bar.set(done);
        }
    });
    let bars = bars.into_inner().unwrap_or_else(PoisonError::into_inner);
    bars.into_iter().for_each(Bar::clear);
    Ok(outcomes)
}

fn sources(image: &Image) -> Result<Vec<LayerSource>, Failure> {
    let layers = image.layers().map(|(descriptor, diff_id)| {
        let blob = image.source.blob(descriptor).map_err(|error| {
            image_failure(format!("opening layer {}", descriptor.digest), &error.into())
        })?;
        Ok(LayerSource { descriptor: descriptor.clone(), diff_id: Some(diff_id), blob })
    });
    layers.collect()
}

fn bars(layers: &[LayerSource], output: &Output) -> Mutex<Vec<Bar>> {
    let bar = |layer: &LayerSource| {
        let label = format!("indexing {:.19}", layer.descriptor.digest.to_string());
        output.bar(&label, layer.descriptor.size)
    };
    Mutex::new(layers.iter().map(bar).collect())
}

fn failure(attempted: String, error: &IndexError) -> Failure {
    Failure::caused(code_of(error.class()), attempted, error)
}

fn report(indexed: &[IndexedImage], artifacts: &Artifacts, output: &Output) {
    let root = artifacts.root.as_ref().map(|(root, _)| root.digest);
    let images = indexed.iter().zip(&artifacts.indexes);
    if output.json {
        let image = |(it, index): (&IndexedImage, &Option<_>)| describe(it, index.as_ref());
        let images: Vec<Value> = images.map(image).collect();
        return output.json(&json!({ "image": root, "images": images }));
    }
    for (it, index) in images {
        if indexed.len() > 1 {
            output.line(it.image.documents.config.platform.to_string());
        }
        for ((layer, _), outcome) in it.image.layers().zip(&it.outcomes) {
            let layer = layer.digest;
            match outcome {
                Outcome::Built(ztoc) => output.line(format_args!(
                    "{layer}  {} entries in {} spans, zTOC {}",
                    ztoc.entry_count,
                    ztoc.span_count,
                    Bytes(ztoc.bytes.len() as u64)
                )),
                Outcome::Skipped(reason) => output.line(format_args!("{layer}  {reason}")),
            }
        }
        match index {
            Some(index) => output.line(format_args!("SOCI index {}", index.digest)),
            None => output.line("no SOCI index: no layer has a zTOC"),
        }
    }
    if let Some(root) = root {
        output.line(format_args!("image index {root}"));
    }
}

fn describe(it: &IndexedImage, index: Option<&spanfs_layer::oci::Descriptor>) -> Value {
    let layer =
        |((layer, _), outcome): ((&spanfs_layer::oci::Descriptor, _), &Outcome)| match outcome {
            Outcome::Built(ztoc) => json!({
                "layer": layer.digest,
                "ztoc": ztoc.digest,
                "ztoc_bytes": ztoc.bytes.len(),
                "span_count": ztoc.span_count,
                "entry_count": ztoc.entry_count,
            }),
            Outcome::Skipped(reason) => json!({ "layer": layer.digest, "skipped": reason }),
        };
    json!({
        "platform": it.image.documents.config.platform.to_string(),
        "manifest": it.image.documents.descriptor.digest,
        "index": index.map(|index| index.digest),
        "layers": it.image.layers().zip(&it.outcomes).map(layer).collect::<Vec<_>>(),
    })
}

fn write(
    images: &Images,
    name: &ImageRef,
    indexed: &[IndexedImage],
    artifacts: &Artifacts,
    place: &ImageRef,
) -> Result<(), Failure> {
    let failed = |error: ImageError| image_failure(format!("writing to {place}"), &error);
    if let ImageRef::Directory { path, .. } = place {
        make_layout(path)?;
    }
    let source = images.source(name).map_err(failed)?;
    let target = images.source(place).map_err(failed)?;
    publish(images, &source, indexed, artifacts, &target).map_err(failed)
}

/// A layout must be there before it can be a place of images.
fn make_layout(path: &Path) -> Result<(), Failure> {
    LayoutWriter::open(path).map(drop).map_err(|error| {
        Failure::caused(Code::Failed, format!("making the layout {}", path.display()), &error)
    })
}
