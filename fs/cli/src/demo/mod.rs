//! `spanfs demo`: the same image, downloaded and unpacked first, and mounted at once.
//!
//! Without network: the image is made of this machine's programs and served by an embedded registry
//! over a link that it slows down itself. Everything lies in one temporary directory and goes with
//! it, also on Ctrl-C.

mod check;
mod image;
mod programs;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use spanfs::image::Images;
use spanfs::index::{IndexOptions, IndexedImage, Source, build, publish, version_2};
use spanfs_fetch::ImageRef;
use spanfs_layer::oci::Platform;
use spanfs_registry::{Link, Registry};

use crate::arguments::{self, Demo};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::quantity::Bytes;
use crate::session::image_failure;
use crate::settings::{self, Facts};
use crate::signals;
use crate::starts::{self, Stages, Started, Until};

use image::Made;

const ATTEMPTED: &str = "showing what spanfs is good for";
const ROOM_ADVICE: &str = "set TMPDIR to a directory with more room, or make --size smaller";
/// Repository of the embedded registry.
const REPOSITORY: &str = "demo/programs";

pub(crate) fn demo(arguments: &Demo, output: &Output) -> Result<ExitCode, Failure> {
    let stop = signals::flag().map_err(|error| Failure::io(ATTEMPTED, &error))?;
    let directory = tempfile::Builder::new()
        .prefix("spanfs-demo-")
        .tempdir()
        .map_err(|error| Failure::io("making a temporary directory", &error))?;
    let result = match &arguments.image {
        None => with_made_image(arguments, directory.path(), &stop, output),
        Some(image) => compare(arguments, image, directory.path(), None, &stop, output),
    };
    let removed = directory.close();
    if stop.load(Ordering::SeqCst) {
        output.note("stopped; everything is cleaned up");
        return Ok(ExitCode::from(130));
    }
    result?;
    removed.map_err(|error| Failure::io("removing the temporary directory", &error))?;
    Ok(ExitCode::SUCCESS)
}

fn with_made_image(
    arguments: &Demo,
    directory: &Path,
    stop: &Arc<AtomicBool>,
    output: &Output,
) -> Result<(), Failure> {
    let link = Link::preset(&arguments.link).ok_or_else(|| {
        let names: Vec<&str> = Link::PRESETS.iter().map(|(name, _)| *name).collect();
        let reason = format!("{:?} is none of {}", arguments.link, names.join(", "));
        Failure::usage("choosing a link", reason)
    })?;
    let link = link.slower(arguments.slower);
    let layout = directory.join("layout");
    output.note("making an image from this machine's programs and libraries …");
    let made = std::fs::create_dir(&layout)
        .map_err(|error| Failure::io("making a layout", &error))
        .and_then(|()| {
            image::make(&layout, arguments.size.0, stop).map_err(|error| {
                let advice = match &error {
                    image::MakeError::Write { .. } => ROOM_ADVICE,
                    _ => "spanfs demo --image REF takes any image",
                };
                Failure::caused(Code::Failed, "making an image of this machine", &error)
                    .advise(advice)
            })
        })?;
    output.note("building its zTOCs and SOCI index …");
    add_index(&layout, stop)?;
    let registry = Registry::builder().start().and_then(|registry| {
        registry.put_image(REPOSITORY, &layout)?;
        Ok(registry)
    });
    let registry =
        registry.map_err(|error| Failure::caused(Code::Failed, "starting the registry", &error))?;
    registry.set_link(link);
    if !output.json {
        output.line(describe(&made));
        output.line(describe_link(&arguments.link, &link));
    }
    let reference = registry.reference(REPOSITORY, "indexed");
    compare(arguments, &reference, directory, Some((&made, &registry)), stop, output)
}

fn describe(made: &Made) -> String {
    format!(
        "image     {} in {} layers, {} compressed, {} files and directories of this machine",
        Bytes(made.uncompressed_bytes),
        made.layer_count,
        Bytes(made.compressed_bytes),
        made.contents.len()
    )
}

fn describe_link(name: &str, link: &Link) -> String {
    let rate = |rate: Option<u64>| match rate {
        Some(rate) => format!("{}/s", Bytes(rate)),
        None => "unlimited".to_owned(),
    };
    format!(
        "link      {name}, slowed: round trip {} ms, {}, {} per connection",
        link.rtt.as_millis(),
        rate(link.bytes_per_second),
        rate(link.connection_bytes_per_second)
    )
}

/// Put the converted image beside the plain one, under the tag `indexed`.
fn add_index(layout: &Path, stop: &AtomicBool) -> Result<(), Failure> {
    let attempted = || "indexing the image".to_owned();
    let failed = |error| image_failure(attempted(), &error);
    let name =
        |tag: &str| ImageRef::Directory { path: layout.to_owned(), tag: Some(tag.to_owned()) };
    let images = Images::start(Default::default()).map_err(failed)?;
    let image = images.find(&name("plain"), &Platform::host()).map_err(failed)?;
    let layers = image.layers().map(|(descriptor, diff_id)| {
        let blob = image.source.blob(descriptor).map_err(|error| failed(error.into()))?;
        Ok(Source { descriptor: descriptor.clone(), diff_id: Some(diff_id), blob })
    });
    let layers = layers.collect::<Result<Vec<_>, Failure>>()?;
    let options = IndexOptions {
        span_size: spanfs_cache::build::SPAN_SIZE,
        layer_bytes_min: 0,
        threads: Facts::gather().threads,
    };
    let refused = |error| Failure::caused(Code::Failed, attempted(), &error);
    let outcomes = build(&layers, &options, stop, &|_, _| {}).map_err(refused)?;
    let indexed = [IndexedImage { image, outcomes }];
    let artifacts = version_2(&indexed, &options).map_err(refused)?;
    let place = |tag: &str| images.source(&name(tag)).map_err(failed);
    publish(&images, &place("plain")?, &indexed, &artifacts, &place("indexed")?).map_err(failed)
}

/// Start the image both ways, and say what it took.
fn compare(
    arguments: &Demo,
    reference: &str,
    directory: &Path,
    made: Option<(&Made, &Registry)>,
    stop: &Arc<AtomicBool>,
    output: &Output,
) -> Result<(), Failure> {
    let facts = Facts::gather();
    let reaching = settings::reaching(&arguments.access, &facts)?;
    let asked = arguments::Image {
        image: reference.to_owned(),
        platform: None,
        access: arguments.access.clone(),
    };
    let stages = Stages {
        asked: &asked,
        command: &arguments.command,
        directory,
        registry: made.map(|(_, registry)| registry),
        // The figures are to show what a start needs, not what idle time adds.
        background: false,
        until: Until::End,
        stop,
        output,
    };
    let eager = starts::download_and_start(&stages, &reaching)?;
    let lazy = starts::mount_and_start(&stages, "mount and start", eager.compressed_bytes)?;
    let checked = match made {
        Some((made, _)) => Some(check::check(&stages, &made.contents)?),
        None => None,
    };
    report(&eager, &lazy, checked, output);
    Ok(())
}

fn report(eager: &Started, lazy: &Started, checked: Option<usize>, output: &Output) {
    if output.json {
        let side = |side: &Started| {
            json!({
                "first_output_seconds": side.first_output.as_secs_f64(),
                "fetched_bytes": side.fetched_bytes,
                "output": side.said,
            })
        };
        return output.json(&json!({
            "image_bytes": eager.compressed_bytes,
            "download_and_unpack": side(eager),
            "mount": side(lazy),
            "checked": checked,
        }));
    }
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let fetched = |side: &Started| match side.fetched_bytes {
        Some(bytes) => Bytes(bytes).to_string(),
        None => "-".to_owned(),
    };
    output.line("");
    output.line(format_args!("{:34} {:>14} {:>14}", "", "first output", "fetched by then"));
    for (label, side) in [("download and unpack, then start", eager), ("mount and start", lazy)] {
        let time = seconds(side.first_output);
        output.line(format_args!("{label:34} {time:>14} {:>14}", fetched(side)));
    }
    let ratio = eager.first_output.as_secs_f64() / lazy.first_output.as_secs_f64().max(1e-3);
    output.line(format_args!(
        "the program said {:?}, {ratio:.1} times sooner; the image has {} to fetch",
        lazy.said.lines().next().unwrap_or_default(),
        Bytes(eager.compressed_bytes)
    ));
    if let Some(checked) = checked {
        output.line(format_args!("checked {checked} files and directories: all as in the source"));
    }
}
