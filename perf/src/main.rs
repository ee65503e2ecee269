//! Pull-latency measurements of spanfs: what README and the issues promise, as ratios in one run.
//!
//! `perf promises` builds synthetic images, serves them from the embedded registry over a shaped link
//! and drives the built `spanfs` command as a user would.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command that prints results")]

mod content;
mod lab;
mod promises;
mod report;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "perf", version, about = "Measure spanfs: ratios in one run on one machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the promises of the lazy mount. Needs root, /dev/fuse and a built `spanfs`.
    Promises {
        /// Which ones; all unless given.
        names: Vec<String>,
        /// The `spanfs` to measure; the one built beside this command unless given.
        #[arg(long)]
        spanfs: Option<PathBuf>,
        /// Directory with the images that `perf/images/build` made.
        #[arg(long, default_value = "target/perf-images")]
        images: PathBuf,
        /// Where scratch files go: a directory on the disk to measure.
        #[arg(long, default_value = "target/perf-scratch")]
        scratch: PathBuf,
        /// Runs of each measurement; the median counts.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Print the requests that the registry got, each with its time.
        #[arg(long)]
        requests: bool,
        /// Append one JSON line per row to this file.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    let Command::Promises { names, spanfs, images, scratch, runs, requests, out } =
        Arguments::parse().command;
    let lab = lab::Lab::new(spanfs, images, scratch, runs, requests)?;
    let mut report = report::Report::new(out)?;
    promises::run(&names, &lab, &mut report)?;
    report.finish()
}
