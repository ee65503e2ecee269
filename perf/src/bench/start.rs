//! A workload with a subject, from the pull to the moment at which it is ready.

use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result};
use spanfs_registry::Registry;

use super::output::Output;
use super::{NamedLink, Prepared, Scratch, Session, Site, Stop, ready, site};
use crate::results::Figures;
use crate::subject::Subject;
use crate::workload::{Ready, Workload};

/// Of the container.
pub(crate) const NAME: &str = "perf";
const AGAIN: &str = "perf-again";

/// What is started, with what, and where.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'a> {
    pub(crate) scratch: &'a Scratch,
    pub(crate) link: &'a NamedLink,
    pub(crate) stop: &'a Stop,
    pub(crate) workload: &'a Workload,
    pub(crate) image: &'a Prepared,
    pub(crate) subject: &'a Subject,
}

/// A workload that is ready.
pub(crate) struct Started {
    pub(crate) figures: Figures,
    pub(crate) output: Output,
    child: Option<Child>,
}

impl Started {
    /// Who waits for the workload's end.
    pub(crate) fn take_child(&mut self) -> Result<Child> {
        self.child.take().context("the workload was taken before")
    }
}

impl Bench<'_> {
    /// A registry with the image behind the link.
    pub(crate) fn registry(&self) -> Result<Registry> {
        site::registry(self.image, self.link)
    }

    /// A node that reaches it.
    pub(crate) fn site(&self, registry: &Registry) -> Result<Site> {
        Site::start(self.scratch, registry, self.stop)
    }

    /// The image's name on a node.
    pub(crate) fn reference(&self) -> String {
        self.image.reference(&Site::host(), self.subject.image)
    }

    /// From the pull on; times are since `began`.
    pub(crate) fn start(
        &self,
        session: &mut dyn Session,
        site: &Site,
        began: Instant,
    ) -> Result<Started> {
        session.pull(&self.reference()).context("pulling")?;
        let pull = began.elapsed().as_secs_f64();
        let mut started = self.start_pulled(session, site, began)?;
        started.figures.pull = pull;
        Ok(started)
    }

    /// The same with an image that was pulled before.
    pub(crate) fn start_pulled(
        &self,
        session: &mut dyn Session,
        site: &Site,
        began: Instant,
    ) -> Result<Started> {
        self.start_as(NAME, session, site, began)
    }

    /// The same container once more, everything local: from its making to ready.
    pub(crate) fn warm(&self, session: &mut dyn Session, site: &Site) -> Result<f64> {
        let mut again = self.start_as(AGAIN, session, site, Instant::now())?;
        session.stop(AGAIN, again.take_child()?)?;
        Ok(again.figures.ready)
    }

    fn start_as(
        &self,
        name: &str,
        session: &mut dyn Session,
        site: &Site,
        began: Instant,
    ) -> Result<Started> {
        let seconds = || began.elapsed().as_secs_f64();
        let (reference, command) = (self.reference(), &self.workload.command);
        session.create(&reference, name, command).context("making the container")?;
        let create = seconds();
        let mut child = session.start(&reference, name, command)?;
        let start = seconds();
        let wanted = match &self.workload.ready {
            Ready::Log(pattern) => Some(pattern.as_str()),
            _ => None,
        };
        let output = Output::of(&mut child, wanted)?;
        let deadline = began + self.workload.timeout;
        let (ready, network) = (&self.workload.ready, &site.network);
        match ready::wait(ready, &mut child, &output, network, deadline, self.stop) {
            Ok(at) => {
                let ready = (at - began).as_secs_f64();
                let figures = Figures { create, start, ready, ..Figures::default() };
                Ok(Started { figures, output, child: Some(child) })
            }
            Err(error) => {
                // What entered the node goes with it; this is only who waits outside.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}
