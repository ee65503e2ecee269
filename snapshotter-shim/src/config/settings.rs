//! Settings in force: durations, limits and choices. Each is read by somebody: keys of the peer's that
//! mean nothing here end in a warning instead.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use spanfs::image::decide::Parallel;
use spanfs_mount::transport::Transport;

/// Settings in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where metrics are served.
    pub metrics: Option<Listen>,
    /// Unix socket of the debug endpoint; none for the one beside the daemon's own.
    pub debug_socket: Option<PathBuf>,
    /// How long a layer may take to be mounted.
    pub mount_timeout: Duration,
    /// Try at start whether overlayfs works.
    pub check_overlay: bool,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time from a request to the headers of its answer.
    pub header_timeout: Duration,
    /// Time for a whole request.
    pub request_timeout: Duration,
    /// Repeats of requests that are no blob reads.
    pub request_retry: Retry,
    /// Time for one read of a blob.
    pub blob_timeout: Duration,
    /// Repeats of blob reads.
    pub blob_retry: Retry,
    /// Fetching what nobody asked for; none when it is off.
    pub background_fetch: Option<BackgroundFetch>,
    /// Where fetched blobs are kept.
    pub content_store: ContentStore,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// Read prefetch lists of images.
    pub prefetch: bool,
    /// Ways to pull.
    pub pull_modes: PullModes,
    /// Kubeconfig whose cluster's secrets are credentials: `Some(None)` for the usual places.
    pub kubeconfig: Option<Option<PathBuf>>,
    /// The kubelet's credential providers.
    pub credential_providers: Option<CredentialProviders>,
    /// CRI image service that we stand before, to learn credentials.
    pub cri_image_service: Option<PathBuf>,
    /// Mirrors by registry host.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Layers below this size are not lazy, in bytes.
    pub lazy_layer_len_min: u64,
    /// Start although layers can't be mounted again.
    pub allow_invalid_mounts: bool,
    /// How layers are shown.
    pub front: FrontChoice,
    /// What carries FUSE; the best for each mount unless given.
    pub transport: Option<Transport>,
    /// Switch FUSE over io_uring on, for the whole machine.
    pub enable_uring: bool,
    /// Layers that come whole leave a zTOC behind.
    pub ztoc_from_full_pull: bool,
    /// Lazy layers that are complete leave their blob in the content store.
    pub complete_blobs: bool,
    /// Most bytes a second that are fetched in the background; none for what the link gives.
    pub background_bytes_per_second_max: Option<u64>,
    /// Options for every overlay mount.
    pub overlay_options: Vec<String>,
}

/// How layers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontChoice {
    /// As well as the machine can: EROFS; else inodes for lazy layers and files for others.
    Auto,
    /// By EROFS or not at all.
    Erofs,
    /// Inode by inode.
    Inode,
    /// Unpacked, if they come whole.
    Files,
}

/// Programs that tell credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialProviders {
    /// A `CredentialProviderConfig` of the kubelet's.
    pub config: PathBuf,
    /// Directory of the programs.
    pub programs: PathBuf,
}

/// Where to listen for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

/// Repeats of a request, waiting longer each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Further tries after the first.
    pub retries_max: u32,
    /// Wait before the first of them.
    pub wait_min: Duration,
    /// Longest wait.
    pub wait_max: Duration,
}

/// Fetching what nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackgroundFetch {
    /// Pause after the first mount of an image.
    pub silence: Duration,
}

/// Where fetched blobs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentStore {
    /// An OCI layout of our own.
    Soci,
    /// containerd's.
    Containerd,
}

/// Ways to pull.
#[derive(Clone, Debug, PartialEq)]
pub struct PullModes {
    /// Lazily, with an index beside the image.
    pub soci_v1: bool,
    /// Lazily, with an index that the image names.
    pub soci_v2: bool,
    /// Whole layers, several at once.
    pub parallel: Option<ParallelPull>,
}

impl PullModes {
    /// When whole layers are fetched side by side.
    pub fn parallel_mode(&self) -> Parallel {
        match &self.parallel {
            None => Parallel::Off,
            Some(parallel) if parallel.is_fallback => Parallel::Fallback,
            Some(_) => Parallel::Always,
        }
    }
}

/// Pulling whole layers. Limits of none are no limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ParallelPull {
    /// Only for images without index.
    pub is_fallback: bool,
    /// Downloads of the node at once.
    pub downloads_max: Option<u32>,
    /// Downloads of an image at once.
    pub downloads_per_image_max: Option<u32>,
    /// Bytes a request; none for a layer a request.
    pub chunk_len: Option<u64>,
    /// Layers of the node unpacked at once.
    pub unpacks_max: Option<u32>,
    /// Layers of an image unpacked at once.
    pub unpacks_per_image_max: Option<u32>,
    /// Don't keep compressed layers.
    pub discard: bool,
    /// Programs that decompress, by algorithm.
    pub programs: BTreeMap<String, DecompressProgram>,
}

/// A program from compressed bytes on stdin to plain ones on stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecompressProgram {
    /// As the file says; looked up before it is run.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// Another place of a registry's blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// With scheme.
    pub host: String,
    /// Certificates are not checked, and HTTP will do.
    pub insecure: bool,
    /// Time for a request; none for ever, zero for the default.
    pub request_timeout: Option<Duration>,
}
