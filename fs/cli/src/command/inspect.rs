//! `spanfs inspect`: an image, its SOCI index, and the zTOC of a layer with its spans.

use serde_json::{Value, json};
use spanfs::image::Discovery;
use spanfs_layer::ztoc::View;
use spanfs_layer::{Digest, Kind, Record, Restart, SpanTable};

use crate::arguments::Inspect;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::quantity::Bytes;
use crate::session::{Reached, image_failure};
use crate::settings::{self, Facts};

/// zTOCs are a hundredth of their layer; this is one of a layer that nobody has.
const ZTOC_LEN_MAX: u64 = 1 << 30;

pub(crate) fn inspect(arguments: &Inspect, output: &Output) -> Result<(), Failure> {
    let reaching = settings::reaching(&arguments.image.access, &Facts::gather())?;
    let reached = Reached::find(&arguments.image, &reaching, None)?;
    match &arguments.layer {
        None => {
            let image = image(&reached);
            if output.json { output.json(&image) } else { show_image(&image, output) }
        }
        Some(layer) => {
            let ztoc = ztoc(&reached, layer)?;
            let report = report(&ztoc, layer, arguments)?;
            if output.json { output.json(&report) } else { show_ztoc(&report, output) }
        }
    }
    Ok(())
}

fn image(reached: &Reached) -> Value {
    let documents = &reached.image.documents;
    let index = reached.discovery.index();
    let layers = reached.image.layers().map(|(layer, diff_id)| {
        let ztoc = index.and_then(|index| index.ztoc(&layer.digest));
        json!({
            "digest": layer.digest,
            "media_type": layer.media_type,
            "size": layer.size,
            "diff_id": diff_id,
            "ztoc": ztoc.map(|ztoc| json!({ "digest": ztoc.digest, "size": ztoc.size })),
        })
    });
    let soci = match &reached.discovery {
        Discovery::Found { digest, index, by } => json!({
            "digest": digest,
            "version": format!("{:?}", index.version).to_lowercase(),
            "found_by": by,
        }),
        Discovery::None { reason } => json!({ "missing": reason }),
    };
    json!({
        "image": reached.name,
        "manifest": documents.descriptor.digest,
        "media_type": documents.descriptor.media_type,
        "config": documents.manifest.config.digest,
        "platform": documents.config.platform.to_string(),
        "command": documents.config.command().collect::<Vec<_>>(),
        "layers": layers.collect::<Vec<_>>(),
        "soci_index": soci,
    })
}

fn show_image(image: &Value, output: &Output) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    output.line(format_args!("image     {}", text(&image["image"])));
    output.line(format_args!("manifest  {}", text(&image["manifest"])));
    output.line(format_args!("platform  {}", text(&image["platform"])));
    let command = image["command"].as_array().into_iter().flatten().map(&text);
    output.line(format_args!("command   {}", command.collect::<Vec<_>>().join(" ")));
    let soci = &image["soci_index"];
    match soci["missing"].as_str() {
        Some(reason) => output.line(format_args!("index     none: {reason}")),
        None => output.line(format_args!(
            "index     {} ({}, by {})",
            text(&soci["digest"]),
            text(&soci["version"]),
            text(&soci["found_by"])
        )),
    }
    for layer in image["layers"].as_array().into_iter().flatten() {
        let size = Bytes(layer["size"].as_u64().unwrap_or(0));
        let ztoc = match layer["ztoc"]["size"].as_u64() {
            Some(len) => format!("zTOC of {}", Bytes(len)),
            None => "no zTOC".to_owned(),
        };
        output.line(format_args!("layer     {}  {size:>9}  {ztoc}", text(&layer["digest"])));
    }
}

/// The zTOC that the image's index has for a layer.
fn ztoc(reached: &Reached, layer: &Digest) -> Result<Vec<u8>, Failure> {
    let attempted = || format!("finding the zTOC of layer {layer} of {}", reached.name);
    if !reached.image.layers().any(|(found, _)| found.digest == *layer) {
        return Err(Failure::new(Code::NotFound, attempted(), "the image has no such layer")
            .advise(format!("spanfs inspect {} lists its layers", reached.name)));
    }
    let index = match &reached.discovery {
        Discovery::Found { index, .. } => index,
        Discovery::None { reason } => {
            return Err(Failure::new(Code::NotFound, attempted(), reason.clone())
                .advise("spanfs index builds one"));
        }
    };
    let Some(ztoc) = index.ztoc(layer) else {
        let reason = "the SOCI index leaves this layer out";
        return Err(Failure::new(Code::NotFound, attempted(), reason));
    };
    let fetch = reached.image.source.blob_bytes(ztoc, ZTOC_LEN_MAX);
    let bytes = reached.images.runtime().block_on(fetch);
    let bytes = bytes.map_err(|error| image_failure(attempted(), &error.into()))?;
    Ok(bytes.to_vec())
}

fn report(ztoc: &[u8], layer: &Digest, arguments: &Inspect) -> Result<Value, Failure> {
    let attempted = || format!("reading the zTOC of layer {layer}");
    let view =
        View::new(ztoc).map_err(|error| Failure::caused(Code::Corrupt, attempted(), &error))?;
    let records =
        view.records().map_err(|error| Failure::caused(Code::Corrupt, attempted(), &error))?;
    let table = SpanTable::from_ztoc(ztoc)
        .map_err(|error| Failure::caused(Code::Corrupt, attempted(), &error))?;
    let mut report = json!({
        "layer": layer,
        "ztoc": Digest::of(ztoc),
        "ztoc_bytes": ztoc.len(),
        "compressed_bytes": table.compressed_len(),
        "uncompressed_bytes": table.uncompressed_len(),
        "span_count": table.spans().len(),
        "entry_count": records.len(),
    });
    if arguments.spans {
        report["spans"] = spans(&table);
    }
    if arguments.files {
        report["files"] = records.iter().map(entry).collect();
    }
    Ok(report)
}

fn spans(table: &SpanTable) -> Value {
    let span = |(number, span): (usize, &spanfs_layer::Span)| {
        let restart = match span.restart {
            Restart::Stored => "stored".to_owned(),
            Restart::Deflate { bits, .. } => format!("deflate, {bits} bits"),
            Restart::ZstdFrame => "zstd frame".to_owned(),
        };
        json!({
            "span": number,
            "compressed": [span.compressed.start.0, span.compressed.end.0],
            "uncompressed": [span.uncompressed.start.0, span.uncompressed.end.0],
            "restart": restart,
            "digest": span.digest,
        })
    };
    table.spans().iter().enumerate().map(span).collect()
}

fn entry(record: &Record) -> Value {
    let kind = match record.kind {
        Kind::Regular => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Hardlink => "hardlink",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Fifo => "fifo",
    };
    json!({
        "name": String::from_utf8_lossy(&record.name),
        "kind": kind,
        "mode": format!("{:o}", record.mode),
        "uid": record.uid,
        "gid": record.gid,
        "size": record.size,
        "offset": record.data.0,
        "link": String::from_utf8_lossy(&record.link),
    })
}

fn show_ztoc(report: &Value, output: &Output) {
    let number = |key: &str| report[key].as_u64().unwrap_or(0);
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    output.line(format_args!("layer     {}", text(&report["layer"])));
    output.line(format_args!("zTOC      {}", text(&report["ztoc"])));
    output.line(format_args!(
        "sizes     {} compressed, {} uncompressed, zTOC {}",
        Bytes(number("compressed_bytes")),
        Bytes(number("uncompressed_bytes")),
        Bytes(number("ztoc_bytes"))
    ));
    output.line(format_args!(
        "contents  {} entries in {} spans",
        number("entry_count"),
        number("span_count")
    ));
    for span in report["spans"].as_array().into_iter().flatten() {
        let range = |key: &str| format!("{}..{}", span[key][0], span[key][1]);
        output.line(format_args!(
            "{:>8}  {:>25}  {:>27}  {}",
            span["span"].as_u64().unwrap_or(0),
            range("compressed"),
            range("uncompressed"),
            text(&span["restart"])
        ));
    }
    for file in report["files"].as_array().into_iter().flatten() {
        output.line(format_args!(
            "{:>9}  {:>6}  {:>12}  {}",
            text(&file["kind"]),
            text(&file["mode"]),
            file["size"].as_u64().unwrap_or(0),
            text(&file["name"])
        ));
    }
}
