//! What settings mean: durations, limits and choices instead of numbers and texts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use spanfs::image::decide::Parallel;
use spanfs_mount::transport::Transport;

use super::raw::{self, RawConfig};
use super::{Fault, Faults};

/// Settings in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where metrics are served.
    pub metrics: Option<Listen>,
    /// Unix socket of the debug endpoint; none for the one beside the daemon's own.
    pub debug_socket: Option<PathBuf>,
    /// Log every filesystem operation.
    pub log_operations: bool,
    /// Compare tar headers with what the zTOC says of them.
    pub verify_headers: bool,
    /// Layers looked up at once; none for no limit.
    pub lookups_max: Option<u32>,
    /// How long a layer may take to be mounted.
    pub mount_timeout: Duration,
    /// How long after the mount the operations of an image are counted.
    pub operation_count_delay: Duration,
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
    /// Time between two checks that a lazy blob can still be reached; zero for always.
    pub blob_check_interval: Duration,
    /// Time for one read of a blob.
    pub blob_timeout: Duration,
    /// Repeats of blob reads.
    pub blob_retry: Retry,
    /// Ask for one range a request.
    pub single_range: bool,
    /// Further fetches of a span whose digest is wrong.
    pub span_refetches: u32,
    /// Fetching what nobody asked for; none when it is off.
    pub background_fetch: Option<BackgroundFetch>,
    /// Where fetched blobs are kept.
    pub content_store: ContentStore,
    /// containerd's socket.
    pub containerd: PathBuf,
    /// Read prefetch lists of images.
    pub prefetch: bool,
    /// Prefetches at once; none for no limit.
    pub prefetches_max: Option<u32>,
    /// Ways to pull.
    pub pull_modes: PullModes,
    /// Kubeconfig whose cluster's secrets are credentials: `Some(None)` for the usual places.
    pub kubeconfig: Option<Option<PathBuf>>,
    /// The kubelet's credential providers.
    pub credential_providers: Option<CredentialProviders>,
    /// CRI image service that we stand before, to learn credentials.
    pub cri_image_service: Option<PathBuf>,
    /// How long a login is kept; none for ever.
    pub login_ttl: Option<Duration>,
    /// Share logins between repositories of a registry.
    pub share_logins: bool,
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
    /// Time between two spans.
    pub period: Duration,
    /// Layers that wait; none for no limit.
    pub queue_len_max: Option<u32>,
    /// Which layer gives way when more come.
    pub drop: DropPolicy,
    /// Time between two looks at the queue for metrics.
    pub metric_period: Duration,
}

/// Which of too many waiting layers gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPolicy {
    /// The one that comes.
    Newest,
    /// The one that waited longest.
    Oldest,
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

/// The longest time that a setting may name: numbers beyond are slips of the unit.
const DURATION_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Fetches of one span after a wrong digest, where the file says "some".
/// A gigabit: most of a node's link is left to containers, and 10 GB are there after 80 s.
const COMPLETE_BYTES_PER_SECOND_MAX: u64 = 128 << 20;
const SPAN_REFETCHES: u32 = 3;

impl Settings {
    /// The meaning of filled settings, or everything that is wrong with them.
    pub(super) fn resolve(raw: &RawConfig) -> Result<Self, Faults> {
        let mut check = Check(Vec::new());
        let settings = resolve(raw, &mut check);
        if check.0.is_empty() { Ok(settings) } else { Err(Faults(check.0)) }
    }
}

fn resolve(raw: &RawConfig, check: &mut Check) -> Settings {
    let RawConfig { http, blob, prefetch, resolver, snapshotter, .. } = raw;
    if !["db", "db-multi"].contains(&raw.metadata_store.as_str()) {
        let store = &raw.metadata_store;
        check.fault(format!("unknown metadata store type: {store}; must be db or db-multi"));
    }
    let keychain = &raw.kubeconfig_keychain;
    let cri = &raw.cri_keychain;
    Settings {
        metrics: metrics(raw, check),
        debug_socket: socket_path(&raw.debug_address).map(path),
        log_operations: raw.debug || raw.fuse.log_fuse_operations,
        verify_headers: !raw.disable_verification,
        lookups_max: check.limit("max_concurrency", raw.max_concurrency),
        mount_timeout: check.seconds("mount_timeout_sec", raw.mount_timeout_sec),
        operation_count_delay: check.seconds(
            "fuse_metrics_emit_wait_duration_sec",
            raw.fuse_metrics_emit_wait_duration_sec,
        ),
        check_overlay: !raw.skip_check_snapshotter_supported,
        connect_timeout: check.millis("http.DialTimeoutMsec", http.dial_timeout_msec),
        header_timeout: check
            .millis("http.ResponseHeaderTimeoutMsec", http.response_header_timeout_msec),
        request_timeout: check.millis("http.RequestTimeoutMsec", http.request_timeout_msec),
        request_retry: check.retry(
            ["http.MaxRetries", "http.MinWaitMsec", "http.MaxWaitMsec"],
            [http.max_retries, http.min_wait_msec, http.max_wait_msec],
        ),
        blob_check_interval: match blob.check_always {
            true => Duration::ZERO,
            false => check.seconds("blob.valid_interval", blob.valid_interval),
        },
        blob_timeout: check.seconds("blob.fetching_timeout_sec", blob.fetching_timeout_sec),
        blob_retry: check.retry(
            ["blob.max_retries", "blob.min_wait_msec", "blob.max_wait_msec"],
            [blob.max_retries, blob.min_wait_msec, blob.max_wait_msec],
        ),
        single_range: blob.force_single_range_mode,
        span_refetches: u32::try_from(blob.max_span_verification_retries).unwrap_or(SPAN_REFETCHES),
        background_fetch: background(&raw.background_fetch, check),
        content_store: check.choice(
            "content_store.type",
            &raw.content_store.kind,
            &[("soci", ContentStore::Soci), ("containerd", ContentStore::Containerd)],
        ),
        containerd: path(&raw.content_store.containerd_address),
        prefetch: prefetch.enable,
        prefetches_max: check.limit("prefetch.max_concurrency", prefetch.max_concurrency),
        pull_modes: pull_modes(raw, check),
        kubeconfig: keychain
            .enable_keychain
            .then(|| non_empty(&keychain.kubeconfig_path).map(PathBuf::from)),
        credential_providers: credential_providers(&raw.spanfs.credential_providers, check),
        cri_image_service: cri.enable_keychain.then(|| path(&cri.image_service_path)),
        login_ttl: match resolver.auth_client_ttl_sec {
            ..0 => None,
            seconds => Some(check.seconds("resolver.auth_client_ttl_sec", seconds)),
        },
        share_logins: resolver.enable_auth_client_sharing,
        mirrors: mirrors(resolver, check),
        lazy_layer_len_min: check.count("snapshotter.min_layer_size", snapshotter.min_layer_size),
        allow_invalid_mounts: snapshotter.allow_invalid_mounts_on_restart,
        front: check.choice(
            "spanfs.front",
            &raw.spanfs.front,
            &[
                ("auto", FrontChoice::Auto),
                ("erofs", FrontChoice::Erofs),
                ("inode", FrontChoice::Inode),
                ("files", FrontChoice::Files),
            ],
        ),
        transport: check.choice(
            "spanfs.transport",
            &raw.spanfs.transport,
            &[
                ("auto", None),
                ("dev", Some(Transport::Dev)),
                ("uring", Some(Transport::Uring)),
                ("fuse3", Some(Transport::Fuse3)),
            ],
        ),
        enable_uring: raw.spanfs.enable_uring,
        ztoc_from_full_pull: raw.spanfs.ztoc_from_full_pull,
        complete_blobs: complete_blobs(raw, check),
        background_bytes_per_second_max: match raw.spanfs.background_bytes_per_second_max {
            0 if raw.spanfs.complete_blobs => Some(COMPLETE_BYTES_PER_SECOND_MAX),
            rate => u64::try_from(rate).ok().filter(|rate| *rate > 0),
        },
        overlay_options: overlay_options(raw, check),
    }
}

/// Where blobs are kept that come by the way, other tools must find them.
fn complete_blobs(raw: &RawConfig, check: &mut Check) -> bool {
    let wanted = raw.spanfs.complete_blobs;
    if wanted && raw.content_store.kind != "containerd" {
        check.fault("spanfs.complete_blobs requires containerd content store".to_owned());
    }
    if wanted && raw.background_fetch.disable {
        check.fault("spanfs.complete_blobs needs background_fetch, which is disabled".to_owned());
    }
    wanted
}

fn credential_providers(
    raw: &raw::CredentialProviders,
    check: &mut Check,
) -> Option<CredentialProviders> {
    let (config, programs) = (non_empty(&raw.config), non_empty(&raw.bin_dir));
    if config.is_some() != programs.is_some() {
        check.fault("spanfs.credential_providers needs both config and bin_dir".to_owned());
    }
    let (config, programs) = (config?.into(), programs?.into());
    Some(CredentialProviders { config, programs })
}

fn metrics(raw: &RawConfig, check: &mut Check) -> Option<Listen> {
    let listen = [("tcp", false), ("unix", true)];
    let is_unix = check.choice("metrics_network", &raw.metrics_network, &listen);
    let address = non_empty(&raw.metrics_address).filter(|_| !raw.no_prometheus)?;
    Some(if is_unix { Listen::Unix(address.into()) } else { Listen::Tcp(address) })
}

fn background(raw: &raw::BackgroundFetch, check: &mut Check) -> Option<BackgroundFetch> {
    let key = "background_fetch";
    let drop = match raw.drop_policy.as_str() {
        "newest" => DropPolicy::Newest,
        "oldest" => DropPolicy::Oldest,
        other => {
            check.fault(format!(
                "{key}.drop_policy must be \"oldest\" or \"newest\", got {other:?}"
            ));
            DropPolicy::Newest
        }
    };
    let settings = BackgroundFetch {
        silence: check.millis("background_fetch.silence_period_msec", raw.silence_period_msec),
        period: check.millis("background_fetch.fetch_period_msec", raw.fetch_period_msec),
        queue_len_max: check.limit("background_fetch.max_queue_size", raw.max_queue_size),
        drop,
        metric_period: check
            .seconds("background_fetch.emit_metric_period_sec", raw.emit_metric_period_sec),
    };
    (!raw.disable).then_some(settings)
}

fn pull_modes(raw: &RawConfig, check: &mut Check) -> PullModes {
    let modes = &raw.pull_modes;
    PullModes {
        soci_v1: modes.soci_v1.enable,
        soci_v2: modes.soci_v2.enable,
        parallel: parallel(&modes.parallel_pull_unpack, &raw.content_store.kind, check),
    }
}

fn parallel(
    raw: &raw::ParallelPullUnpack,
    content_store: &str,
    check: &mut Check,
) -> Option<ParallelPull> {
    let table = "pull_modes.parallel_pull_unpack";
    let fallback = raw.experimental_parallel_pull_as_fallback;
    if content_store != "containerd" && !raw.discard_unpacked_layers {
        let wish = match (raw.enable, fallback) {
            (true, _) => Some("parallel_pull_unpack mode"),
            (false, true) => Some("experimental_parallel_pull_as_fallback"),
            (false, false) => None,
        };
        if let Some(wish) = wish {
            check.fault(format!("{wish} requires containerd content store"));
        }
    }
    let limit = |number: i64| u32::try_from(number).ok().filter(|&limit| limit > 0);
    for (what, all, per_image) in [
        ("download", raw.max_concurrent_downloads, raw.max_concurrent_downloads_per_image),
        ("unpack", raw.max_concurrent_unpacks, raw.max_concurrent_unpacks_per_image),
    ] {
        if let (Some(all), Some(one)) = (limit(all), limit(per_image))
            && all < one
        {
            check.fault(format!("global {what} limit less than per-image {what} limit"));
        }
    }
    let chunk_len = size(&raw.concurrent_download_chunk_size).unwrap_or_else(|| {
        let size = &raw.concurrent_download_chunk_size;
        check.fault(format!("invalid size format: {size}"));
        0
    });
    let program = |(algorithm, stream): (&String, &raw::DecompressStream)| {
        let name = format!("{table}.decompress_streams.{algorithm}");
        check.program(&name, algorithm, stream)
    };
    let programs = raw.decompress_streams.iter().filter_map(program).collect();
    (raw.enable || fallback).then_some(ParallelPull {
        is_fallback: !raw.enable,
        downloads_max: limit(raw.max_concurrent_downloads),
        downloads_per_image_max: limit(raw.max_concurrent_downloads_per_image),
        chunk_len: Some(chunk_len).filter(|&len| len > 0),
        unpacks_max: limit(raw.max_concurrent_unpacks),
        unpacks_per_image_max: limit(raw.max_concurrent_unpacks_per_image),
        discard: raw.discard_unpacked_layers,
        programs,
    })
}

/// `<number>[ ][b|kb|mb|gb]`, fractions allowed, 1024-based; nothing is 0.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() {
        return Some(0);
    }
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let factor = match unit.trim_start() {
        "" | "b" => 1u64,
        "kb" => 1 << 10,
        "mb" => 1 << 20,
        "gb" => 1 << 30,
        _ => return None,
    };
    let len = number.parse::<f64>().ok()? * factor as f64;
    // Beyond, an f64 does not hold every number of bytes.
    (len < (1u64 << 53) as f64).then_some(len as u64)
}

fn mirrors(raw: &raw::Resolver, check: &mut Check) -> BTreeMap<String, Vec<Mirror>> {
    let mut mirrors = BTreeMap::new();
    for (registry, host) in &raw.host {
        let of_host = host.mirrors.iter().map(|mirror| {
            let key = format!("resolver.host.{registry:?}.mirrors.request_timeout_sec");
            if !mirror.host.contains("://") {
                let host = &mirror.host;
                check.fault(format!(
                    "resolver.host.{registry:?}.mirrors.host {host:?} has no scheme, such as https://"
                ));
            }
            Mirror {
                host: mirror.host.clone(),
                insecure: mirror.insecure,
                request_timeout: match mirror.request_timeout_sec {
                    ..0 => None,
                    seconds => Some(check.seconds(&key, seconds)),
                },
            }
        });
        mirrors.insert(registry.clone(), of_host.collect());
    }
    mirrors
}

fn overlay_options(raw: &RawConfig, check: &mut Check) -> Vec<String> {
    let ours = ["lowerdir", "upperdir", "workdir"];
    for option in &raw.spanfs.overlay.mount_options {
        let name = option.split('=').next().unwrap_or_default();
        if option.contains(',') || ours.contains(&name) {
            check.fault(format!(
                "spanfs.overlay.mount_options: {option:?} is not one option of the administrator's"
            ));
        }
    }
    raw.spanfs.overlay.mount_options.clone()
}

fn non_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// What is no path is an address of TCP, which tells the state of a node to anyone.
pub(super) fn socket_path(address: &str) -> Option<&str> {
    Some(address).filter(|address| address.starts_with(['/', '.']) || address.starts_with("unix:"))
}

fn path(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or(address).into()
}

/// What was found wrong so far.
struct Check(Vec<Fault>);

impl Check {
    fn fault(&mut self, problem: String) {
        self.0.push(Fault { line: None, problem });
    }

    fn seconds(&mut self, key: &str, number: i64) -> Duration {
        self.duration(key, number, Duration::from_secs)
    }

    fn millis(&mut self, key: &str, number: i64) -> Duration {
        self.duration(key, number, Duration::from_millis)
    }

    fn duration(&mut self, key: &str, number: i64, unit: fn(u64) -> Duration) -> Duration {
        match u64::try_from(number).map(unit) {
            Ok(duration) if duration <= DURATION_MAX => duration,
            _ => {
                self.fault(format!("{key} is {number}, expected a time from 0 to 7 days"));
                Duration::ZERO
            }
        }
    }

    fn count(&mut self, key: &str, number: i64) -> u64 {
        u64::try_from(number).unwrap_or_else(|_| {
            self.fault(format!("{key} is {number}, expected 0 or more"));
            0
        })
    }

    /// Nothing and less is no limit.
    fn limit(&mut self, key: &str, number: i64) -> Option<u32> {
        match u32::try_from(number) {
            Ok(0) => None,
            Ok(limit) => Some(limit),
            Err(_) if number < 0 => None,
            Err(_) => {
                self.fault(format!("{key} is {number}, expected at most {}", u32::MAX));
                None
            }
        }
    }

    fn retry(&mut self, keys: [&str; 3], [retries, min, max]: [i64; 3]) -> Retry {
        let retries_max = match u32::try_from(retries) {
            Ok(retries) => retries,
            Err(_) if retries < 0 => 0,
            Err(_) => {
                self.fault(format!("{} is {retries}, expected at most {}", keys[0], u32::MAX));
                0
            }
        };
        let (wait_min, wait_max) = (self.millis(keys[1], min), self.millis(keys[2], max));
        if wait_min > wait_max {
            self.fault(format!("{} is {min}, more than the {max} of {}", keys[1], keys[2]));
        }
        Retry { retries_max, wait_min, wait_max }
    }

    fn choice<T: Copy>(&mut self, key: &str, text: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        self.fault(format!("{key} is {text:?}, expected {}", names.join(" or ")));
        choices[0].1
    }

    fn program(
        &mut self,
        key: &str,
        algorithm: &str,
        raw: &raw::DecompressStream,
    ) -> Option<(String, DecompressProgram)> {
        if !["gzip", "zstd"].contains(&algorithm) {
            self.fault(format!("{key}: no such algorithm, expected gzip or zstd"));
        }
        if raw.path.is_empty() {
            self.fault(format!("{key}.path is missing"));
        }
        if raw.path.contains(['#', '%', '{', '}', '\\', '|', ';', '&', '$', '<', '>']) {
            self.fault(format!("{key}.path {:?}: path contains invalid characters", raw.path));
        }
        let program = DecompressProgram { path: raw.path.clone().into(), args: raw.args.clone() };
        Some((algorithm.to_owned(), program))
    }
}
