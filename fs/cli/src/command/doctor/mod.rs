//! `spanfs doctor`: what of this machine stands in the way of lazy containers, and what to do about it.

mod change;
mod containerd;
mod daemon;
mod machine;
mod registries;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::arguments::Doctor;
use crate::failure::Failure;
use crate::output::Output;
use crate::settings::{self, Facts};
pub(crate) use containerd::Release;
use containerd::{Config, Wanted};
pub(crate) use daemon::PROGRAMS;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It works, but less well than it could.
    Warning,
    /// Containers do not start lazily, or not at all.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// `kernel`, `disk`, ...
    about: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Finding {
    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warning(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { about, verdict: Verdict::Warning, found: found.into(), advice }
    }

    fn fault(about: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fault, ..Self::warning(about, found, advice) }
    }
}

pub(crate) fn doctor(arguments: &Doctor, output: &Output) -> Result<ExitCode, Failure> {
    let path = arguments.containerd_config.clone();
    if arguments.undo {
        let done = change::undo(&path)?;
        output.note(done);
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = Wanted {
        snapshotter: arguments.snapshotter.clone(),
        socket: arguments.socket.clone(),
        root: arguments.root.clone(),
        release: arguments.containerd_release.or_else(containerd::installed_release),
    };
    if arguments.fix {
        let done = change::fix(&path, &wanted)?;
        output.note(done);
    }
    let mut findings = Vec::new();
    if !arguments.config_only {
        findings.extend(machine::look(&arguments.root));
        findings.extend(daemon::look(&arguments.socket));
    }
    findings.extend(configuration(&path, &wanted));
    if !arguments.config_only {
        let reaching = settings::reaching(&arguments.access, &Facts::gather())?;
        findings.extend(registries::look(&arguments.registries, &reaching));
    }
    Ok(tell(&findings, output))
}

/// containerd's configuration in the form of findings.
fn configuration(path: &Path, wanted: &Wanted) -> Vec<Finding> {
    const ABOUT: &str = "containerd";
    let config = match Config::read(path) {
        Ok(config) => config,
        Err(error) => {
            let advice = "mend it, or name another file with --containerd-config";
            return vec![Finding::fault(ABOUT, error, advice)];
        }
    };
    let faults = config.check(wanted);
    if faults.is_empty() {
        let found =
            format!("{} knows {} and asks it for lazy layers", path.display(), wanted.snapshotter);
        return vec![Finding::ok(ABOUT, found)];
    }
    let in_form = |fault: containerd::Fault| {
        let found = format!("{}: {}", fault.file.display(), fault.found);
        let advice = match fault.fix {
            Some(_) => format!("{}, or let spanfs doctor --fix do it", fault.advice),
            None => fault.advice,
        };
        match fault.is_grave {
            true => Finding::fault(ABOUT, found, advice),
            false => Finding::warning(ABOUT, found, advice),
        }
    };
    faults.into_iter().map(in_form).collect()
}

fn tell(findings: &[Finding], output: &Output) -> ExitCode {
    let is_well = findings.iter().all(|finding| finding.verdict != Verdict::Fault);
    if output.json {
        let rows = findings.iter().map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Fault => "fault",
            };
            let (found, advice) = (&finding.found, &finding.advice);
            json!({ "about": finding.about, "verdict": verdict, "found": found, "advice": advice })
        });
        output.json(&json!({ "ok": is_well, "findings": rows.collect::<Vec<_>>() }));
    } else {
        for Finding { about, verdict, found, advice } in findings {
            let word = match verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warn",
                Verdict::Fault => "FAULT",
            };
            output.line(format_args!("{word:<5}  {about:<11}  {found}"));
            if let Some(advice) = advice {
                output.line(format_args!("{:20}try: {advice}", ""));
            }
        }
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The first directory upwards that is there.
fn nearest(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}
