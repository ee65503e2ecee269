//! The descriptors of a session that a successor needs to go on with it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What keeps a session's connection alive without us. What it was is in the mount's record.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// The FUSE connection.
    pub(crate) device: Arc<OwnedFd>,
    /// Memory with requests and replies under way, of a transport that shares some with the kernel.
    pub(crate) ring: Option<Arc<OwnedFd>>,
    /// Root of the mount, of a transport that must be able to make requests itself. It keeps the mount
    /// from ending, and its owner must let it go when it is to end.
    pub(crate) root: Option<Arc<OwnedFd>>,
}

impl Live {
    /// Of a transport that needs no more than its connection.
    pub(crate) fn of_device(device: &Arc<OwnedFd>) -> Self {
        Self { device: Arc::clone(device), ring: None, root: None }
    }

    /// With the name that each has in a hold.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static str, &Arc<OwnedFd>)> {
        let parts = [("fuse", Some(&self.device)), ("ring", self.ring.as_ref())];
        let parts = parts.into_iter().chain([("root", self.root.as_ref())]);
        parts.filter_map(|(role, descriptor)| Some((role, descriptor?)))
    }

    /// From such parts; none without a connection.
    pub(crate) fn of(part: impl Fn(&str) -> Option<Arc<OwnedFd>>) -> Option<Self> {
        Some(Self { device: part("fuse")?, ring: part("ring"), root: part("root") })
    }
}
