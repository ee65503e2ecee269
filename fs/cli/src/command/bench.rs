//! `spanfs bench`: how soon images start on this machine, without containerd.
//!
//! Each start begins with an empty cache, but for the one that has a trace of the start before. The
//! kinds take turns in being first, so that what warms up on the way favours none.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::arguments::{Bench, Image};
use crate::failure::Failure;
use crate::output::Output;
use crate::quantity::Bytes;
use crate::settings::{self, Facts, Reaching};
use crate::signals;
use crate::starts::{Stages, Started, Until, download_and_start, mount_and_start};

/// Ways to start.
const KINDS: [&str; 3] =
    ["download and unpack, then start", "mount and start", "mount and start, by a trace"];
const UNPACKED: usize = 0;
const MOUNTED: usize = 1;
const TRACED: usize = 2;

pub(crate) fn bench(arguments: &Bench, output: &Output) -> Result<ExitCode, Failure> {
    let reaching = settings::reaching(&arguments.access, &Facts::gather())?;
    let stop = signals::flag().map_err(|error| Failure::io("preparing to measure", &error))?;
    for image in &arguments.images {
        let measured = measure(image, arguments, &reaching, &stop, output);
        if stop.load(Ordering::SeqCst) {
            output.note("stopped; everything is cleaned up");
            return Ok(ExitCode::from(130));
        }
        report(image, &measured?, output);
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts of one image, by kind.
type Measured = [Vec<Started>; 3];

fn measure(
    image: &str,
    arguments: &Bench,
    reaching: &Reaching,
    stop: &AtomicBool,
    output: &Output,
) -> Result<Measured, Failure> {
    let asked = Image {
        image: image.to_owned(),
        platform: arguments.platform.clone(),
        access: arguments.access.clone(),
    };
    let mut measured = Measured::default();
    for run in 0..arguments.runs {
        let failed = |error| Failure::io("making a temporary directory", &error);
        let directory =
            tempfile::Builder::new().prefix("spanfs-bench-").tempdir().map_err(failed)?;
        let stages = Stages {
            asked: &asked,
            command: &arguments.command,
            directory: directory.path(),
            registry: None,
            background: true,
            until: if arguments.until_output { Until::FirstOutput } else { Until::End },
            stop,
            output,
        };
        let unpack = |measured: &mut Measured| -> Result<(), Failure> {
            measured[UNPACKED].push(download_and_start(&stages, reaching)?);
            Ok(())
        };
        if run % 2 == 0 {
            unpack(&mut measured)?;
        }
        measured[MOUNTED].push(mount_and_start(&stages, KINDS[MOUNTED], 0)?);
        forget_layers(&directory.path().join("cache"))?;
        measured[TRACED].push(mount_and_start(&stages, KINDS[TRACED], 0)?);
        if run % 2 == 1 {
            unpack(&mut measured)?;
        }
        directory
            .close()
            .map_err(|error| Failure::io("removing the temporary directory", &error))?;
    }
    Ok(measured)
}

/// Leave nothing in the cache but the trace: as on a machine that was given it.
fn forget_layers(cache: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::io(format!("emptying {}", cache.display()), &error);
    for entry in fs::read_dir(cache).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_directory = entry.file_type().map_err(failed)?.is_dir();
        if is_directory && entry.file_name() != "traces" {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn report(image: &str, measured: &Measured, output: &Output) {
    let bytes = measured[UNPACKED].first().map_or(0, |start| start.compressed_bytes);
    let kinds = KINDS.iter().zip(measured);
    if output.json {
        let kinds: serde_json::Map<String, Value> = kinds
            .map(|(kind, starts)| ((*kind).to_owned(), starts.iter().map(to_json).collect()))
            .collect();
        return output.json(&json!({ "image": image, "image_bytes": bytes, "starts": kinds }));
    }
    output.line(format_args!("{image}, {} compressed", Bytes(bytes)));
    output.line(format_args!("{:34} {:>12} {:>15} {:>12}", "", "first output", "", "end"));
    let first = |start: &Started| start.first_output;
    let whole = spread(&measured[UNPACKED], first);
    for (number, (kind, starts)) in kinds.enumerate() {
        let (output_at, end) = (spread(starts, first), spread(starts, |start| start.ended));
        let sooner = whole.median.as_secs_f64() / output_at.median.as_secs_f64().max(1e-3);
        let sooner = match number {
            UNPACKED => String::new(),
            _ => format!("  {sooner:.1} times sooner"),
        };
        output.line(format_args!(
            "{kind:34} {:>10.2} s {:>15} {:>10.2} s{sooner}",
            output_at.median.as_secs_f64(),
            format!("{:.2} to {:.2}", output_at.least.as_secs_f64(), output_at.most.as_secs_f64()),
            end.median.as_secs_f64()
        ));
    }
}

fn to_json(start: &Started) -> Value {
    json!({
        "first_output_seconds": start.first_output.as_secs_f64(),
        "end_seconds": start.ended.as_secs_f64(),
    })
}

struct Spread {
    least: Duration,
    median: Duration,
    most: Duration,
}

fn spread(starts: &[Started], of: impl Fn(&Started) -> Duration) -> Spread {
    let mut times: Vec<Duration> = starts.iter().map(of).collect();
    times.sort();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Spread { least: at(0), median: at(times.len() / 2), most: at(times.len().saturating_sub(1)) }
}
