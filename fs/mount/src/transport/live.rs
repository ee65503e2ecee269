//! The descriptors of a session that a successor needs to go on with it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What keeps a session's connection alive without us. What it was is in the mount's record.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// The FUSE connection.
    pub(crate) device: Arc<OwnedFd>,
    /// The index that is mounted over it, of a mount with [shortcuts](crate::shortcuts).
    pub(crate) index: Option<Arc<OwnedFd>>,
    /// Memory with requests and replies under way, of a transport that shares some with the kernel.
    pub(crate) ring: Option<Arc<OwnedFd>>,
    /// Root of the mount, of a transport that must be able to make requests itself. It keeps the mount
    /// from ending, and its owner must let it go when it is to end.
    pub(crate) root: Option<Arc<OwnedFd>>,
}

impl Live {
    /// Of a transport that needs no more than its connection.
    pub(crate) fn of_device(device: &Arc<OwnedFd>) -> Self {
        Self { device: Arc::clone(device), index: None, ring: None, root: None }
    }

    /// What they are called in a hold.
    pub(crate) const ROLES: [&str; 4] = ["fuse", "index", "ring", "root"];

    /// With the name that each has in a hold, in the order of those names.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static str, &Arc<OwnedFd>)> {
        let Self { device, index, ring, root } = self;
        let parts = [Some(device), index.as_ref(), ring.as_ref(), root.as_ref()];
        Self::ROLES.into_iter().zip(parts).filter_map(|(role, part)| Some((role, part?)))
    }

    /// From such parts; none without a connection.
    pub(crate) fn of(part: impl Fn(&str) -> Option<Arc<OwnedFd>>) -> Option<Self> {
        let [fuse, index, ring, root] = Self::ROLES.map(part);
        Some(Self { device: fuse?, index, ring, root })
    }
}
