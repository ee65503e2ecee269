//! Layers and images, mounted: from contents and indexes to a directory that can be used.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use spanfs_cache::Content;
use spanfs_layer::Tree;
use spanfs_layer::erofs::DataCopy;
use tempfile::TempPath;

use crate::filesystem::{Filesystem, Open};
use crate::front::inode::{Inodes, LayerCountError};
use crate::front::one_file::{FILE_NAME, LARGE_NAME, OneFile};
use crate::front::{self};
use crate::hold::Holding;
use crate::inherit::{identity, identity_of_tree};
use crate::kept::Kept;
use crate::kernel_mount::KernelMountError;
use crate::mount::{Mount, Shown};
use crate::overlay::{self, OverlayError, OverlayOptions};
use crate::policy::{self, Carried, Front};
use crate::probe;
use crate::record::{self, Places, Record};
use crate::shortcuts::Shortcuts;
use crate::transport::{
    CAPABILITIES, FuseOptions, Privilege, ServeError, Server, ServerOptions, Session, Transport,
};
use crate::unmount;

/// How mounts are made.
#[derive(Clone, Debug)]
pub struct MounterOptions {
    /// Directory of ours: records of mounts, and mount points that nobody else needs.
    pub state: PathBuf,
    /// Keeps mounts for a successor of this process; without it they end with us.
    pub holding: Option<Holding>,
    /// Threads and limits.
    pub server: ServerOptions,
    /// What carries FUSE; unless given, what [`policy::transport`] chooses.
    pub transport: Option<Transport>,
    /// Flags of INIT that FUSE mounts take when they are offered.
    pub capabilities: u64,
    /// Whether the mounts that a layer is made of stay in sight below `state`, until it goes.
    pub parts: Parts,
    /// How the kernel reads small files in the one file: [`Open::Direct`] where memory is tight. Large
    /// ones are always read directly.
    pub open: Open,
    /// Source and subtype of the one-file mount.
    pub one_file: (String, String),
    /// Whether the kernel reads past us what stands in an incomplete layer file.
    pub shortcuts: bool,
    /// Read-ahead on our FUSE mounts in KiB; `None` keeps the kernel's 128, which measured best.
    pub read_ahead_kib: Option<u32>,
}

/// What becomes of mounts that only carry others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Detached as soon as they are carried: nothing to clean up, nothing to stumble over.
    Hidden,
    /// Left in sight, as tools want that count `fuse.rawBridge` mounts.
    Visible,
}

impl MounterOptions {
    /// The defaults, with state in `state`.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            holding: None,
            server: ServerOptions::default(),
            transport: None,
            capabilities: CAPABILITIES,
            parts: Parts::Hidden,
            open: Open::Cached,
            // nerdctl and SOCI's own suites look for these two.
            one_file: ("soci".into(), "rawBridge".into()),
            shortcuts: true,
            read_ahead_kib: None,
        }
    }
}

/// A layer to be shown by EROFS.
#[derive(Clone)]
pub struct Layer {
    /// Its name in the log: the layer digest.
    pub name: String,
    /// Its bytes.
    pub content: Arc<dyn Content>,
    /// Path of its index, written by us.
    pub index: PathBuf,
    /// Length that the index wants the layer file to have.
    pub data_len: u64,
    /// What the index wants in a second place, behind the tar.
    pub copies: Vec<DataCopy>,
}

/// Why a mount was not made. Whatever had been mounted for it is gone again.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A file or directory of ours.
    #[error("cannot {attempt} {path}")]
    State {
        /// What was attempted.
        attempt: &'static str,
        /// With what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// FUSE.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// EROFS.
    #[error(transparent)]
    Erofs(#[from] KernelMountError),
    /// The stack of an image.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// What was inherited is not what was to be shown there. It has ended.
    #[error("the mount at {mount_point} shows other layers than it is to show")]
    NotTheSame {
        /// Where.
        mount_point: PathBuf,
    },
    /// The caller's mistake.
    #[error(transparent)]
    LayerCount(#[from] LayerCountError),
}

/// Makes mounts, and serves those that need it as long as it lives.
pub struct Mounter {
    server: Server,
    options: MounterOptions,
    /// What [`probe::uring`] found when it was first needed.
    uring: OnceLock<Result<(), String>>,
    left: Arc<AtomicBool>,
}

impl Mounter {
    /// Threads start with the first mount that needs them. Call [`crate::record::recover`] first.
    pub fn new(options: MounterOptions) -> Result<Self, MountError> {
        for path in [options.records(), options.empty()] {
            std::fs::create_dir_all(&path).map_err(|source| state("create", &path, source))?;
        }
        let server = Server::new(options.server.clone());
        Ok(Self { server, options, uring: OnceLock::new(), left: Arc::default() })
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn options(&self) -> &MounterOptions {
        &self.options
    }

    pub(crate) fn left(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.left)
    }

    /// Leave all mounts as they are to a successor, and serve no more: requests wait for it, if their
    /// mounts are kept. To be called once, before the process ends.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.server.leave();
    }

    /// Show one layer at `mount_point`, whiteouts as its index has them.
    pub fn layer(&self, layer: &Layer, mount_point: &Path) -> Result<Mount, MountError> {
        let (mut mount, place) = self.begin(mount_point, Privilege::Root)?;
        self.add_layer(&mut mount, layer, &place, 0)?;
        Ok(mount.complete())
    }

    /// Whether a layer can be shown without us: its content is complete, and at the tar's own places.
    pub fn is_direct(layer: &Layer) -> bool {
        direct_file(layer).is_some()
    }

    /// Show a layer directly where `old`, a mount of [`Self::layer`], shows it with our help. At no
    /// moment is nothing there; who has `old` open or mounted keeps it, and it remains to be
    /// unmounted. `None` if the layer can't be shown directly; then nothing has changed.
    pub fn direct(
        &self,
        layer: &Layer,
        mount_point: &Path,
        old: &mut Mount,
    ) -> Result<Option<Mount>, MountError> {
        let Some(file) = direct_file(layer) else { return Ok(None) };
        let (mut mount, place) = self.begin(mount_point, Privilege::Root)?;
        front::erofs::mount_beneath(&layer.index, file, &place)?;
        if let Err(source) = unmount::detach(&place, Privilege::Root) {
            return Err(state("uncover", &place, source));
        }
        old.release(&place);
        mount.mounted(place);
        mount.shown(Shown::ErofsDirect, &identity(layer));
        Ok(Some(mount.complete()))
    }

    /// Show an image of `layers`, the lowest first, at `mount_point`.
    pub fn image(
        &self,
        layers: &[Layer],
        mount_point: &Path,
        options: &OverlayOptions,
    ) -> Result<Mount, MountError> {
        let (mut mount, place) = self.begin(mount_point, Privilege::Root)?;
        let mut lowers = Vec::with_capacity(layers.len() + 1);
        for (number, layer) in layers.iter().enumerate() {
            let directory = mount.directory(&format!("layer-{number}"))?;
            self.add_layer(&mut mount, layer, &directory, number)?;
            lowers.insert(0, directory);
        }
        if lowers.len() < 2 && options.upper.is_none() {
            lowers.push(self.options.empty()); // overlayfs stacks nothing less than two.
        }
        overlay::mount(&lowers, &place, options)?;
        mount.mounted(place);
        if self.options.parts == Parts::Hidden {
            mount.hide_parts();
        }
        Ok(mount.complete())
    }

    /// Show a tree, of a layer or merged from an image, inode by inode at `mount_point`.
    pub fn inodes(
        &self,
        tree: Arc<Tree>,
        layers: Vec<(String, Arc<dyn Content>)>,
        mount_point: &Path,
        privilege: Privilege,
    ) -> Result<Mount, MountError> {
        let same = identity_of_tree(&tree, &layers);
        let filesystem = Inodes::new(tree, layers)?;
        let (mut mount, place) = self.begin(mount_point, privilege)?;
        let fuse = self.fuse_options(privilege, Front::Inode, "spanfs", "spanfs");
        mount.served(self.serve(Arc::new(filesystem), &place, fuse)?);
        mount.mounted(place);
        mount.shown(Shown::Inodes, &same);
        Ok(mount.complete())
    }

    fn fuse_options(
        &self,
        privilege: Privilege,
        front: Front,
        source: &str,
        subtype: &str,
    ) -> FuseOptions {
        let uring = self.uring.get_or_init(probe::uring);
        let carried = Carried { privilege, front, is_kept: self.options.holding.is_some(), uring };
        let (transport, reason) = policy::transport(carried, self.options.transport);
        tracing::debug!("FUSE mounts of {source} take the {transport} transport: {reason}");
        FuseOptions {
            privilege,
            transport,
            allow_other: privilege == Privilege::Root,
            capabilities: self.options.capabilities,
            source: source.into(),
            subtype: subtype.into(),
            read_ahead_kib: self.options.read_ahead_kib.filter(|_| privilege == Privilege::Root),
        }
    }

    /// Serve by the transport that was chosen. What the probe can't see is only found now.
    fn serve(
        &self,
        filesystem: Arc<dyn Filesystem>,
        place: &Path,
        mut fuse: FuseOptions,
    ) -> Result<Session, ServeError> {
        match self.server.serve(Arc::clone(&filesystem), place, &fuse) {
            Err(error @ ServeError::NoRings(_)) if self.options.transport.is_none() => {
                tracing::warn!("{error}; the dev transport is taken");
                fuse.transport = Transport::Dev;
                self.server.serve(filesystem, place, &fuse)
            }
            outcome => outcome,
        }
    }

    /// The record comes first, so that no kill leaves a mount that nobody knows.
    fn begin(
        &self,
        mount_point: &Path,
        privilege: Privilege,
    ) -> Result<(Mount, PathBuf), MountError> {
        let place = mount_point
            .canonicalize()
            .map_err(|source| state("resolve mount point", mount_point, source))?;
        let base = &self.options.state;
        let staging = std::path::absolute(base).and_then(|base| {
            record::make_unique(|name| {
                let path = base.join(format!("parts-{name}"));
                std::fs::create_dir(&path).map(|()| path)
            })
        });
        let staging = staging.map_err(|source| state("create a directory in", base, source))?;
        let places = Places { mount_point: place.clone(), staging: staging.clone() };
        let record = Record::write(&self.options.records(), &places).map_err(|source| {
            record::remove_staging(&staging);
            state("write a record in", &self.options.records(), source)
        })?;
        let kept = Kept::new(record, self.options.holding.clone(), self.left());
        Ok((Mount::begin(privilege, staging, kept), place))
    }

    fn add_layer(
        &self,
        mount: &mut Mount,
        layer: &Layer,
        place: &Path,
        number: usize,
    ) -> Result<(), MountError> {
        if let Some(file) = direct_file(layer) {
            front::erofs::mount(&layer.index, file, place)?;
            mount.mounted(place.to_owned());
            mount.shown(Shown::ErofsDirect, &identity(layer));
            return Ok(());
        }
        let directory = mount.directory(&format!("file-{number}"))?;
        let (source, subtype) = &self.options.one_file;
        let fuse = self.fuse_options(Privilege::Root, Front::Erofs, source, subtype);
        let (shortcuts, copy) = self.shortcuts(layer).unzip();
        let one_file = self.one_file(layer).with_shortcuts(shortcuts.clone());
        let mut session = self.serve(Arc::new(one_file), &directory, fuse)?;
        if let (Some(live), Some(shortcuts)) = (&mut session.live, &shortcuts) {
            live.index = Some(Arc::clone(shortcuts.index()));
        }
        mount.served(session);
        mount.mounted(directory.clone());
        let open = |name| {
            let path = directory.join(name);
            std::fs::File::open(&path).map_err(|source| state("open", &path, source))
        };
        let (small, large) = (open(FILE_NAME)?, open(LARGE_NAME)?);
        let (small, large) = (small.as_fd(), large.as_fd());
        let direct = layer.content.layer_file().unwrap_or(large);
        let index = copy.as_deref().unwrap_or(&layer.index);
        front::erofs::mount(index, front::erofs::Data { small, large, direct }, place)?;
        mount.mounted(place.to_owned());
        mount.shown(Shown::ErofsOverFuse, &identity(layer));
        mount.has_shortcuts(shortcuts);
        if self.options.parts == Parts::Hidden {
            mount.hide(&directory);
        }
        Ok(())
    }
}

impl Mounter {
    pub(crate) fn one_file(&self, layer: &Layer) -> OneFile {
        OneFile::with_copies(
            Arc::clone(&layer.content),
            &layer.name,
            self.options.open,
            layer.data_len,
            &layer.copies,
        )
    }

    /// Without them all reads come to us, now and when all is there.
    fn shortcuts(&self, layer: &Layer) -> Option<(Arc<Shortcuts>, TempPath)> {
        let made = if self.options.shortcuts { Shortcuts::make(layer) } else { Ok(None) };
        made.unwrap_or_else(|error| {
            let index = layer.index.display();
            tracing::warn!(
                "reads of what is here go through us, too: the index {index} can't be copied: {error}"
            );
            None
        })
    }
}

/// The file that shows a layer without us.
fn direct_file(layer: &Layer) -> Option<BorrowedFd<'_>> {
    let file = layer.content.complete_file().filter(|_| layer.copies.is_empty())?;
    let len = rustix::fs::fstat(file).ok()?.st_size as u64;
    (len >= layer.data_len).then_some(file)
}

impl MounterOptions {
    /// Where records of mounts are.
    pub fn records(&self) -> PathBuf {
        self.state.join("records")
    }

    fn empty(&self) -> PathBuf {
        self.state.join("empty")
    }
}

pub(crate) fn state(attempt: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::State { attempt, path: path.to_owned(), source }
}
