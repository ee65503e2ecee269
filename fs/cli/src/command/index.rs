//! `spanfs index`: zTOCs of all layers, and the SOCI index that ties them to the image.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde_json::json;
use spanfs::index::{Artifacts, IndexError, IndexOptions, Outcome, Source as LayerSource};
use spanfs::index::{build, publish, version_1, version_2};
use spanfs_fetch::{ImageRef, LayoutWriter};

use crate::arguments::{Index, IndexFormat};
use crate::failure::{Code, Failure};
use crate::output::{Bar, Output};
use crate::quantity::Bytes;
use crate::session::{Reached, code_of, image_failure};
use crate::settings::{self, Facts};
use crate::signals;

pub(crate) fn index(arguments: &Index, output: &Output) -> Result<(), Failure> {
    let attempted = || format!("indexing {}", arguments.image.image);
    let facts = Facts::gather();
    let reaching = settings::reaching(&arguments.image.access, &facts)?;
    let target = arguments.output.as_deref().map(target).transpose()?;
    let reached = Reached::find(&arguments.image, &reaching, None)?;
    let options = IndexOptions {
        span_size: arguments.span_size.0,
        layer_bytes_min: arguments.min_layer_size.0,
        threads: facts.threads,
    };
    let stop = signals::flag().map_err(|error| Failure::io(attempted(), &error))?;
    let layers = sources(&reached)?;
    let bars = bars(&layers, output);
    let outcomes = build(&layers, &options, &stop, &|number, done| {
        let mut bars = bars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bars.get_mut(number) {
            bar.set(done);
        }
    });
    let bars = bars.into_inner().unwrap_or_else(PoisonError::into_inner);
    bars.into_iter().for_each(Bar::clear);
    let outcomes = outcomes.map_err(|error| failure(attempted(), &error))?;
    let artifacts = match arguments.format {
        IndexFormat::V1 => version_1(&reached.image, &outcomes, &options),
        IndexFormat::V2 => version_2(&reached.image, &outcomes, &options),
    };
    let artifacts = artifacts.map_err(|error| failure(attempted(), &error))?;
    report(&reached, &outcomes, &artifacts, output);
    let place = match target {
        Some(target) => target,
        None if arguments.format == IndexFormat::V1 => reached.image.source.image().clone(),
        None => {
            output.note("nothing was written: --output says where to");
            return Ok(());
        }
    };
    write(&reached, &artifacts, &place).map(|()| output.note(format_args!("written to {place}")))
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

fn sources(reached: &Reached) -> Result<Vec<LayerSource>, Failure> {
    let layers = reached.image.layers().map(|(descriptor, diff_id)| {
        let blob = reached.image.source.blob(descriptor).map_err(|error| {
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

fn report(reached: &Reached, outcomes: &[Outcome], artifacts: &Artifacts, output: &Output) {
    let layers: Vec<_> = reached
        .image
        .layers()
        .zip(outcomes)
        .map(|((layer, _), outcome)| match outcome {
            Outcome::Built(ztoc) => json!({
                "layer": layer.digest,
                "ztoc": ztoc.digest,
                "ztoc_bytes": ztoc.bytes.len(),
                "span_count": ztoc.span_count,
                "entry_count": ztoc.entry_count,
            }),
            Outcome::Skipped(reason) => json!({ "layer": layer.digest, "skipped": reason }),
        })
        .collect();
    if output.json {
        return output.json(&json!({
            "index": artifacts.index.digest,
            "image": artifacts.root.as_ref().map(|(root, _)| root.digest),
            "layers": layers,
        }));
    }
    for ((layer, _), outcome) in reached.image.layers().zip(outcomes) {
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
    output.line(format_args!("SOCI index {}", artifacts.index.digest));
    if let Some((root, _)) = &artifacts.root {
        output.line(format_args!("image index {}", root.digest));
    }
}

fn write(reached: &Reached, artifacts: &Artifacts, place: &ImageRef) -> Result<(), Failure> {
    let attempted = || format!("writing to {place}");
    if let ImageRef::Directory { path, .. } = place {
        make_layout(path)?;
    }
    let target =
        reached.images.source(place).map_err(|error| image_failure(attempted(), &error))?;
    publish(&reached.images, &reached.image, artifacts, &target)
        .map_err(|error| image_failure(attempted(), &error))
}

/// A layout must be there before it can be a place of images.
fn make_layout(path: &Path) -> Result<(), Failure> {
    LayoutWriter::open(path).map(drop).map_err(|error| {
        Failure::caused(Code::Failed, format!("making the layout {}", path.display()), &error)
    })
}
