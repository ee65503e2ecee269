//! A session with `spanfs run`, without containerd.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;

use super::{Session, Site};
use crate::subject;

const END_TIME_MAX: Duration = Duration::from_secs(20);

pub(super) struct Standalone<'a> {
    site: &'a Site,
    engine: subject::Standalone,
    /// Who entered the node, `spanfs`, and the program in the image.
    running: Option<u32>,
}

impl<'a> Standalone<'a> {
    pub(super) fn new(site: &'a Site, engine: &subject::Standalone) -> Self {
        Self { site, engine: engine.clone(), running: None }
    }

    fn cache(&self) -> PathBuf {
        self.site.node.path("lib/spanfs")
    }
}

impl Session for Standalone<'_> {
    /// There is no pull: the image is looked up when it is started.
    fn pull(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn create(&mut self, _: &str, _: &str, _: &[String]) -> Result<()> {
        Ok(())
    }

    fn start(&mut self, reference: &str, _: &str, command: &[String]) -> Result<Child> {
        let mut run = self.site.command("snapshotter", &[])?;
        run.arg(&self.engine.program).args(["run", reference]);
        if !command.is_empty() {
            run.arg("--").args(command);
        }
        run.env("SPANFS_CACHE_DIR", self.cache());
        run.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = run.spawn().context("starting spanfs")?;
        self.running = Some(child.id());
        Ok(child)
    }

    fn exec(&mut self, _: &str, command: &[String], patience: Duration) -> Result<()> {
        let program = self.running.and_then(spanfs_node::child_of).and_then(program_of);
        let program = program.context("the program in the image is gone")?;
        // What it uses is the workload's, and nobody else's.
        let group = self.site.groups.enter("workload")?;
        let mut enter = Command::new("sh");
        enter.arg("-c").arg(format!("{group}exec nsenter \"$@\"")).arg("sh");
        enter.args(["--target", &program.to_string(), "--all", "--root", "--wd", "--"]);
        enter.env_clear().envs(environment_of(program)?);
        enter.args(command);
        let ended = spanfs_node::run_for(&mut enter, patience, &|| self.site.stop.is_set());
        self.site.stop.check()?;
        let ended = ended.context("the steady phase")?;
        match ended.status.success() {
            true => Ok(()),
            false => Err(anyhow!("the steady phase: {}: {}", ended.status, ended.stderr.trim())),
        }
    }

    fn stop(&mut self, _: &str, mut child: Child) -> Result<()> {
        if child.try_wait()?.is_none()
            && let Some(spanfs) = spanfs_node::child_of(child.id())
        {
            // Passed on to the program; one that does not end by it is killed.
            spanfs_node::signal(spanfs, Signal::TERM);
            if !spanfs_node::wait_for(END_TIME_MAX, || Ok(child.try_wait()?.is_some()))? {
                spanfs_node::signal(spanfs, Signal::KILL);
                let _status = child.wait()?;
            }
        }
        self.running = None;
        Ok(())
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        let spanfs = self.running.and_then(spanfs_node::child_of);
        spanfs.map(|pid| ("snapshotter", pid)).into_iter().collect()
    }

    fn roots(&self) -> Vec<PathBuf> {
        vec![self.cache()]
    }
}

/// The environment that a program was started with: what `ctr` gives whoever enters its container, too.
fn environment_of(process: u32) -> Result<Vec<(OsString, OsString)>> {
    let path = format!("/proc/{process}/environ");
    let bytes = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
    let pair = |variable: &[u8]| {
        let at = variable.iter().position(|&byte| byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((text(&variable[..at]), text(&variable[at + 1..])))
    };
    Ok(bytes.split(|&byte| byte == 0).filter_map(pair).collect())
}

/// What runs in the image: the last of `spanfs`'s descendants.
fn program_of(spanfs: u32) -> Option<u32> {
    let mut last = spanfs_node::child_of(spanfs)?;
    while let Some(child) = spanfs_node::child_of(last) {
        last = child;
    }
    Some(last)
}
