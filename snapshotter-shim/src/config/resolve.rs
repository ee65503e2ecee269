//! What settings mean: durations, limits and choices instead of numbers and texts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use spanfs_mount::transport::Transport;

use super::Faults;
use super::check::Check;
use super::raw::{self, RawConfig};
use super::settings::{
    BackgroundFetch, ContentStore, CredentialProviders, FrontChoice, Listen, Mirror, ParallelPull,
    PullModes, Settings,
};

/// A gigabit: most of a node's link is left to containers, and 10 GB are there after 80 s.
const COMPLETE_BYTES_PER_SECOND_MAX: u64 = 128 << 20;

impl Settings {
    /// The meaning of filled settings, or everything that is wrong with them.
    pub(super) fn resolve(raw: &RawConfig) -> Result<Self, Faults> {
        let mut check = Check::default();
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
        mount_timeout: check.seconds("mount_timeout_sec", raw.mount_timeout_sec),
        check_overlay: !raw.skip_check_snapshotter_supported,
        connect_timeout: check.millis("http.DialTimeoutMsec", http.dial_timeout_msec),
        header_timeout: check
            .millis("http.ResponseHeaderTimeoutMsec", http.response_header_timeout_msec),
        request_timeout: check.millis("http.RequestTimeoutMsec", http.request_timeout_msec),
        request_retry: check.retry(
            ["http.MaxRetries", "http.MinWaitMsec", "http.MaxWaitMsec"],
            [http.max_retries, http.min_wait_msec, http.max_wait_msec],
        ),
        blob_timeout: check.seconds("blob.fetching_timeout_sec", blob.fetching_timeout_sec),
        blob_retry: check.retry(
            ["blob.max_retries", "blob.min_wait_msec", "blob.max_wait_msec"],
            [blob.max_retries, blob.min_wait_msec, blob.max_wait_msec],
        ),
        background_fetch: background(&raw.background_fetch, check),
        content_store: check.choice(
            "content_store.type",
            &raw.content_store.kind,
            &[("soci", ContentStore::Soci), ("containerd", ContentStore::Containerd)],
        ),
        containerd: path(&raw.content_store.containerd_address),
        prefetch: prefetch.enable,
        pull_modes: pull_modes(raw, check),
        kubeconfig: keychain
            .enable_keychain
            .then(|| non_empty(&keychain.kubeconfig_path).map(PathBuf::from)),
        credential_providers: credential_providers(&raw.spanfs.credential_providers, check),
        cri_image_service: cri.enable_keychain.then(|| path(&cri.image_service_path)),
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
    let policy = raw.drop_policy.as_str();
    if !["newest", "oldest"].contains(&policy) {
        check.fault(format!("{key}.drop_policy must be \"oldest\" or \"newest\", got {policy:?}"));
    }
    let silence = check.millis("background_fetch.silence_period_msec", raw.silence_period_msec);
    (!raw.disable).then_some(BackgroundFetch { silence })
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
