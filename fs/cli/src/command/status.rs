//! `spanfs status`: every mount process of this user is asked how it is doing.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::arguments::Status;
use crate::command::umount::canonical_parent;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::quantity::Bytes;
use crate::runtime::{self, Ask};

/// A process that does not answer within this time is said to hang.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

pub(crate) fn status(arguments: &Status, output: &Output) -> Result<(), Failure> {
    let sockets = match &arguments.directory {
        None => runtime::sockets()?,
        Some(directory) => {
            let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.clone());
            let socket = runtime::socket(&canonical_parent(&directory))?;
            if !socket.exists() {
                let attempted = format!("asking for the mount in {}", directory.display());
                return Err(Failure::new(Code::NotFound, attempted, "spanfs shows nothing there"));
            }
            vec![socket]
        }
    };
    let mounts: Vec<Value> = sockets.into_iter().map(ask).collect();
    if output.json {
        output.json(&json!({ "mounts": mounts }));
    } else if mounts.is_empty() {
        output.note("nothing is mounted");
    } else {
        mounts.iter().for_each(|mount| show(mount, output));
    }
    Ok(())
}

fn ask(socket: PathBuf) -> Value {
    match runtime::ask(&socket, Ask::Status, ANSWER_TIME_MAX) {
        Ok(Some(answer)) => answer,
        Ok(None) => json!({
            "socket": socket,
            "error": "its process is gone; unless another takes its place in a moment, spanfs umount \
                      takes away what it left",
        }),
        Err(error) => json!({ "socket": socket, "error": format!("no answer: {error}") }),
    }
}

fn show(mount: &Value, output: &Output) {
    if let Some(error) = mount["error"].as_str() {
        return output.line(format_args!("{}: {error}", text(&mount["socket"])));
    }
    let bytes = |value: &Value| Bytes(value.as_u64().unwrap_or(0)).to_string();
    output.line(format_args!("{}  {}", text(&mount["directory"]), text(&mount["image"])));
    output.line(format_args!(
        "  process   {}, for {} s",
        mount["pid"],
        mount["seconds"].as_u64().unwrap_or(0)
    ));
    output.line(format_args!("  shown by  {}: {}", text(&mount["front"]), text(&mount["reason"])));
    if let Some(transport) = mount["transport"].as_str() {
        let reason = text(&mount["transport_reason"]);
        output.line(format_args!("  carried   by {transport}: {reason}"));
    }
    output.line(format_args!(
        "  fetched   {} of {}, {} present",
        bytes(&mount["fetched_bytes"]),
        bytes(&mount["compressed_bytes"]),
        percent(&mount["spans_present"], &mount["span_count"]),
    ));
    output.line(format_args!("  cache     {}", text(&mount["cache_dir"])));
    if let Some(runs) = mount["trace_runs"].as_u64().filter(|runs| *runs > 0) {
        output.line(format_args!("  trace     {runs} reads of an earlier start are fetched first"));
    }
    let latency = &mount["on_demand"];
    if latency["count"].as_u64().is_some_and(|count| count > 0) {
        output.line(format_args!(
            "  waited    {} reads, half of them at most {} ms, 99 % at most {} ms",
            latency["count"],
            millis(&latency["p50_ms"]),
            millis(&latency["p99_ms"])
        ));
    }
    for layer in mount["layers"].as_array().into_iter().flatten() {
        let digest = text(&layer["digest"]);
        let past_us = layer["past_us"].as_u64();
        let past_us = past_us.map(|share| format!(", {share} % past it")).unwrap_or_default();
        output.line(format_args!(
            "  layer     {}  {:>9}  {:>5}  {}{past_us}  {}",
            digest.get(..19).unwrap_or(digest),
            bytes(&layer["compressed_bytes"]),
            percent(&layer["spans_present"], &layer["span_count"]),
            text(&layer["front"]),
            text(&layer["verification"]),
        ));
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn millis(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |millis| format!("{millis:.1}"))
}

fn percent(part: &Value, whole: &Value) -> String {
    match (part.as_u64(), whole.as_u64()) {
        (Some(part), Some(whole)) if whole > 0 => format!("{} %", part * 100 / whole),
        _ => "-".to_owned(),
    }
}
