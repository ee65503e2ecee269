//! A session through containerd and its own client.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use spanfs_node::Inside;

use super::{Session, Site};
use crate::subject;

const SOCKET: &str = "containerd/containerd.sock";
/// Pulling the largest image over the slowest link.
const PULL_TIME_MAX: Duration = Duration::from_secs(3600);
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

pub(super) struct Containerd<'a> {
    site: &'a Site,
    engine: subject::Containerd,
    daemon: Option<Inside>,
    containerd: Inside,
}

impl<'a> Containerd<'a> {
    pub(super) fn start(site: &'a Site, engine: &subject::Containerd) -> Result<Self> {
        let etc = |path: &str, text: &str| -> Result<()> {
            let path = site.node.path("etc").join(path);
            fs::create_dir_all(path.parent().context("a path below /etc")?)?;
            Ok(fs::write(path, text)?)
        };
        etc("containerd/config.toml", &engine.config)?;
        let mut daemon = None;
        if let Some(it) = &engine.daemon {
            etc(it.config.0, it.config.1.as_str())?;
            // Beside its own name, so that it can be told from others in lists of processes.
            let program = site.node.path("bin").join(it.name);
            std::os::unix::fs::symlink(it.program.canonicalize()?, &program)?;
            let mut command = site.command("snapshotter", &engine.programs)?;
            command.arg(&program);
            daemon = Some(site.daemon(command, "snapshotter", it.socket)?);
        }
        let mut command = site.command("containerd", &engine.programs)?;
        command.arg("containerd");
        let containerd = site.daemon(command, "containerd", SOCKET)?;
        let session = Self { site, engine: engine.clone(), daemon, containerd };
        session.ctr(&["plugins", "ls"], COMMAND_TIME_MAX)?;
        Ok(session)
    }

    /// containerd's client. The namespace is part of the control groups' path that containers get.
    fn client(&self) -> Result<Command> {
        let mut command = self.site.command("client", &self.engine.programs)?;
        command.args(["ctr", "--namespace", self.site.groups.name()]);
        Ok(command)
    }

    fn ctr(&self, arguments: &[&str], patience: Duration) -> Result<()> {
        let mut command = self.client()?;
        command.args(arguments);
        let logs = || {
            let mut text =
                format!("the end of containerd's log:\n{}", self.site.tail("containerd"));
            if self.daemon.is_some() {
                text +=
                    &format!("\nthe end of the snapshotter's:\n{}", self.site.tail("snapshotter"));
            }
            text
        };
        let ended = self.site.run(&mut command, patience);
        if ended.as_ref().is_err_and(|error| error.is::<super::Interrupted>()) {
            return ended.map(drop);
        }
        ended.map(drop).map_err(|error| anyhow::anyhow!("{error:#}\n{}", logs()))
    }
}

impl Session for Containerd<'_> {
    fn pull(&mut self, reference: &str) -> Result<()> {
        let snapshotter = self.engine.snapshotter;
        let words = ["images", "pull", "--plain-http", "--snapshotter", snapshotter, reference];
        self.ctr(&words, PULL_TIME_MAX)
    }

    fn create(&mut self, reference: &str, name: &str, command: &[String]) -> Result<()> {
        let mut words = vec!["containers", "create", "--snapshotter", self.engine.snapshotter];
        // The node's network is the container's: its ports can be reached from here.
        words.extend(["--net-host", reference, name]);
        words.extend(command.iter().map(String::as_str));
        self.ctr(&words, COMMAND_TIME_MAX)
    }

    fn start(&mut self, _: &str, name: &str, _: &[String]) -> Result<Child> {
        let mut command = self.client()?;
        command.args(["tasks", "start", name]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("starting ctr")
    }

    fn exec(&mut self, name: &str, command: &[String], patience: Duration) -> Result<()> {
        let mut words = vec!["tasks", "exec", "--exec-id", "steady", name];
        words.extend(command.iter().map(String::as_str));
        self.ctr(&words, patience)
    }

    fn stop(&mut self, name: &str, mut child: Child) -> Result<()> {
        if child.try_wait()?.is_none() {
            self.ctr(&["tasks", "kill", "--signal", "KILL", name], COMMAND_TIME_MAX)?;
            spanfs_node::wait_for(COMMAND_TIME_MAX, || Ok(child.try_wait()?.is_some()))?;
        }
        // `tasks start` removes the task as it ends.
        self.ctr(&["containers", "rm", name], COMMAND_TIME_MAX)
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        let mut all = vec![("containerd", self.containerd.pid)];
        all.extend(self.daemon.iter().map(|daemon| ("snapshotter", daemon.pid)));
        all
    }

    fn roots(&self) -> Vec<PathBuf> {
        vec![self.site.node.path("lib")]
    }
}
