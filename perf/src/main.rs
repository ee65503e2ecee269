//! Pull-latency benchmark: how long it takes from "pull" to "ready", with real images, under real
//! snapshotters, side by side.
//!
//! `perf run` measures, `perf report` shows, `perf compare` and `perf check` judge. `perf promises`
//! checks what README and the issues promise of single parts, as ratios in one run.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command that prints results")]

mod arguments;
mod bench;
mod budgets;
mod cgroup;
mod compare;
mod content;
mod kernel_trace;
mod lab;
mod promises;
mod report;
mod results;
mod showing;
mod simulate;
mod statistics;
mod subject;
mod trace;
mod workload;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser as _;

use arguments::{
    Arguments, Check, Command, Compare, Fleet, Promises, Record, Replay, Report, Run, Simulate,
};
use results::Results;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Report(arguments) => report(&arguments),
        Command::Compare(arguments) => compare(&arguments),
        Command::Check(arguments) => check(&arguments),
        Command::Record(arguments) => record(arguments),
        Command::Replay(arguments) => replay(arguments),
        Command::Simulate(arguments) => simulate(&arguments),
        Command::Fleet(arguments) => fleet(arguments),
        Command::Promises(arguments) => promises(arguments),
        Command::ServeLayer { dir, served } => {
            promises::edge::serve(&dir, &served).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is::<bench::Interrupted>() => {
            eprintln!("perf: {error}");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("perf: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Status 1: something that was measured is not as it should be.
fn verdict(is_good: bool) -> ExitCode {
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What every start on a node needs of this machine.
fn able() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root: it makes namespaces, mounts and control groups"
    );
    for program in ["setpriv", "unshare", "nsenter", "ip", "mount"] {
        ensure!(
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|directory| directory.join(program).is_file()),
            "{program} is not on PATH (Debian: util-linux, iproute2)"
        );
    }
    Ok(())
}

fn run(arguments: Run) -> Result<ExitCode> {
    able()?;
    let stop = bench::Stop::on_signals()?;
    let quiet = arguments.quiet || arguments.json;
    let out = arguments.out.clone();
    let json = arguments.json;
    let plan = arguments.plan(stop)?;
    if !quiet {
        for absent in &plan.absent {
            eprintln!("absent: {}: {}", absent.name, absent.reason);
        }
        let others = bench::busy_share_of_others(std::time::Duration::from_millis(300));
        if others > 0.1 {
            eprintln!(
                "others use {:.0} % of this machine's CPU time: runs will count as disturbed",
                others * 100.0
            );
        }
    }
    ensure!(!plan.subjects.is_empty(), "none of the subjects is here");
    let results = bench::run(&plan)?;
    if json {
        println!("{}", showing::summary(&results)?);
    } else {
        print!("{}", showing::table(&results));
        println!("\nresults in {0}; perf report {0} makes a page of them", out.display());
    }
    Ok(verdict(results.runs.iter().all(|run| run.error.is_none())))
}

fn report(arguments: &Report) -> Result<ExitCode> {
    let results = Results::read(&arguments.results)?;
    let html = arguments.html.clone().unwrap_or_else(|| arguments.results.with_extension("html"));
    let write = |path: &PathBuf, text: String| {
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    };
    write(&html, showing::page(&results))?;
    println!("{}", html.display());
    if let Some(svg) = &arguments.svg {
        write(svg, showing::picture(&results))?;
        println!("{}", svg.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(arguments: &Compare) -> Result<ExitCode> {
    let (before, after) = (Results::read(&arguments.before)?, Results::read(&arguments.after)?);
    let (metric, tolerance) = (arguments.metric, arguments.tolerance / 100.0);
    let rows = compare::compare(&before, &after, metric, tolerance, arguments.subject.as_ref())?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&rows)?),
        false => print!("{}", compare::table(&rows, metric)),
    }
    Ok(verdict(rows.iter().all(|row| !row.is_worse)))
}

fn check(arguments: &Check) -> Result<ExitCode> {
    let results = Results::read(&arguments.results)?;
    let budgets = budgets::load(arguments.budgets.as_deref())?;
    let rows = budgets::check(&budgets, &results);
    match arguments.json {
        true => println!("{}", serde_json::to_string(&rows)?),
        false => print!("{}", budgets::table(&rows)),
    }
    ensure!(!rows.is_empty(), "no budget is about what these results have");
    Ok(verdict(rows.iter().all(|row| row.verdict != budgets::Verdict::Missed)))
}

fn record(arguments: Record) -> Result<ExitCode> {
    able()?;
    let plan = arguments.run.with_subject("overlayfs").plan(bench::Stop::on_signals()?)?;
    let directory = arguments.directory;
    fs::create_dir_all(&directory)?;
    for (bench, name) in plan.benches()?.each()? {
        let reads = trace::record(&bench, plan.scratch.path())?;
        let path = directory.join(format!("{name}.jsonl"));
        fs::write(&path, reads.text()?).with_context(|| format!("writing {}", path.display()))?;
        println!(
            "{}: {} ranges of {} files, {:.1} MB",
            path.display(),
            reads.reads.len(),
            reads.header.files.len(),
            reads.bytes() as f64 / 1e6
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(arguments: Replay) -> Result<ExitCode> {
    able()?;
    let reads = trace::Reads::read(&arguments.trace)?;
    let stop = bench::Stop::on_signals()?;
    let (options, json) = (arguments.mount_option, arguments.run.json);
    let plan = arguments.run.with_subject("spanfs-standalone").plan(stop)?;
    for (bench, name) in plan.benches()?.each()? {
        let replayed = trace::replay_mounted(&reads, &bench, &plan.spanfs(), &options)?;
        match json {
            true => println!("{}", serde_json::to_string(&replayed)?),
            false => println!(
                "{name}: {:.2} s: mount {:.2}, between reads {:.2}, {} reads waited {:.2} s; {:.1} MB read, \
                 {:.1} MB fetched",
                replayed.seconds,
                replayed.mount,
                replayed.thinking,
                replayed.stalls,
                replayed.stalled,
                replayed.bytes as f64 / 1e6,
                replayed.fetched as f64 / 1e6
            ),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn simulate(arguments: &Simulate) -> Result<ExitCode> {
    let results = Results::read(&arguments.results)?;
    let rows = simulate::table(&results, &arguments.fleet()?, &arguments.nodes)?;
    match arguments.json {
        true => println!("{}", serde_json::to_string(&rows)?),
        false => print!("{}", simulate::text(&rows, &arguments.fleet()?)),
    }
    Ok(ExitCode::SUCCESS)
}

fn fleet(arguments: Fleet) -> Result<ExitCode> {
    able()?;
    let (nodes, json) = (arguments.nodes, arguments.run.json);
    let plan = arguments.run.plan(bench::Stop::on_signals()?)?;
    let rows = bench::fleet(&plan, nodes)?;
    match json {
        true => println!("{}", serde_json::to_string(&rows)?),
        false => print!("{}", bench::fleet_table(&rows)),
    }
    Ok(verdict(rows.iter().all(|row| row.error().abs() <= simulate::ERROR_MAX)))
}

fn promises(arguments: Promises) -> Result<ExitCode> {
    let Promises { names, spanfs, images, scratch, runs, soak, requests, out } = arguments;
    let soak = std::time::Duration::from_secs(soak * 60);
    let lab = lab::Lab::new(spanfs, images, scratch, runs, soak, requests)?;
    let mut report = report::Report::new(out)?;
    promises::run(&names, &lab, &mut report)?;
    report.finish()?;
    Ok(ExitCode::SUCCESS)
}
