//! The settings file as it stands: every key of the peer's with its default, and ours.
//!
//! Numbers and texts keep the file's units here, so that `config dump` shows what the file would say;
//! [`super::resolve`] turns them into meaning. Order is the order of `config dump`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Defaults of keys that take it also where the file says 0 or nothing, as the peer reads them.
mod default {
    pub(super) const RESOLVE_RESULT_ENTRY: i64 = 30;
    pub(super) const MAX_CONCURRENCY: i64 = 100;
    pub(super) const MOUNT_TIMEOUT_SEC: i64 = 30;
    pub(super) const FUSE_METRICS_EMIT_WAIT_SEC: i64 = 60;
    pub(super) const METADATA_INSERTION_CHUNK: i64 = 5000;
    pub(super) const HTTP_TIMEOUT_MSEC: i64 = 3000;
    pub(super) const HTTP_REQUEST_TIMEOUT_MSEC: i64 = 300_000;
    pub(super) const RETRIES: i64 = 8;
    pub(super) const RETRY_MIN_WAIT_MSEC: i64 = 30;
    pub(super) const RETRY_MAX_WAIT_MSEC: i64 = 300_000;
    pub(super) const BLOB_VALID_INTERVAL: i64 = 60;
    pub(super) const BLOB_FETCHING_TIMEOUT_SEC: i64 = 300;
    pub(super) const CACHE_ENTRIES: i64 = 10;
    pub(super) const FUSE_TIMEOUT_SEC: i64 = 1;
    pub(super) const SILENCE_MSEC: i64 = 30_000;
    pub(super) const FETCH_PERIOD_MSEC: i64 = 500;
    pub(super) const QUEUE: i64 = 300;
    pub(super) const EMIT_METRIC_SEC: i64 = 10;
    pub(super) const AUTH_CLIENT_TTL_SEC: i64 = 3600;
    pub(super) const CONTAINERD: &str = "/run/containerd/containerd.sock";
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs, reason = "the reference of these keys is the peer's documentation")]
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

table! {
    /// The whole file.
    RawConfig {
        http_cache_type: String = String::new(),
        filesystem_cache_type: String = String::new(),
        resolve_result_entry: i64 = default::RESOLVE_RESULT_ENTRY,
        debug: bool = false,
        disable_verification: bool = false,
        max_concurrency: i64 = default::MAX_CONCURRENCY,
        no_prometheus: bool = false,
        mount_timeout_sec: i64 = default::MOUNT_TIMEOUT_SEC,
        fuse_metrics_emit_wait_duration_sec: i64 = default::FUSE_METRICS_EMIT_WAIT_SEC,
        metrics_address: String = String::new(),
        metrics_network: String = "tcp".to_owned(),
        debug_address: String = String::new(),
        metadata_store: String = "db".to_owned(),
        metadata_db_no_sync: bool = false,
        metadata_insertion_chunk_size: i64 = default::METADATA_INSERTION_CHUNK,
        skip_check_snapshotter_supported: bool = false,
        http: Http = Http::default(),
        blob: Blob = Blob::default(),
        directory_cache: DirectoryCache = DirectoryCache::default(),
        fuse: Fuse = Fuse::default(),
        background_fetch: BackgroundFetch = BackgroundFetch::default(),
        content_store: ContentStore = ContentStore::default(),
        prefetch: Prefetch = Prefetch::default(),
        pull_modes: PullModes = PullModes::default(),
        kubeconfig_keychain: KubeconfigKeychain = KubeconfigKeychain::default(),
        cri_keychain: CriKeychain = CriKeychain::default(),
        resolver: Resolver = Resolver::default(),
        snapshotter: SnapshotterTable = SnapshotterTable::default(),
        spanfs: Spanfs = Spanfs::default(),
    }
}

table! {
    /// Requests that are no blob reads.
    Http {
        #[serde(rename = "DialTimeoutMsec")]
        dial_timeout_msec: i64 = default::HTTP_TIMEOUT_MSEC,
        #[serde(rename = "ResponseHeaderTimeoutMsec")]
        response_header_timeout_msec: i64 = default::HTTP_TIMEOUT_MSEC,
        #[serde(rename = "RequestTimeoutMsec")]
        request_timeout_msec: i64 = default::HTTP_REQUEST_TIMEOUT_MSEC,
        #[serde(rename = "MaxRetries")]
        max_retries: i64 = default::RETRIES,
        #[serde(rename = "MinWaitMsec")]
        min_wait_msec: i64 = default::RETRY_MIN_WAIT_MSEC,
        #[serde(rename = "MaxWaitMsec")]
        max_wait_msec: i64 = default::RETRY_MAX_WAIT_MSEC,
    }
}

table! {
    /// Reads of lazy blobs. Retries that the file leaves out are those of `[http]`.
    Blob {
        valid_interval: i64 = default::BLOB_VALID_INTERVAL,
        check_always: bool = false,
        fetching_timeout_sec: i64 = default::BLOB_FETCHING_TIMEOUT_SEC,
        force_single_range_mode: bool = false,
        max_retries: i64 = 0,
        min_wait_msec: i64 = 0,
        max_wait_msec: i64 = 0,
        max_span_verification_retries: i64 = 0,
    }
}

table! {
    /// The peer's cache of spans.
    DirectoryCache {
        max_lru_cache_entry: i64 = default::CACHE_ENTRIES,
        max_cache_fds: i64 = default::CACHE_ENTRIES,
        sync_add: bool = false,
        direct: bool = true,
    }
}

table! {
    /// FUSE mounts.
    Fuse {
        attr_timeout: i64 = default::FUSE_TIMEOUT_SEC,
        entry_timeout: i64 = default::FUSE_TIMEOUT_SEC,
        negative_timeout: i64 = default::FUSE_TIMEOUT_SEC,
        log_fuse_operations: bool = false,
    }
}

table! {
    /// Fetching what nobody asked for yet.
    BackgroundFetch {
        disable: bool = false,
        silence_period_msec: i64 = default::SILENCE_MSEC,
        fetch_period_msec: i64 = default::FETCH_PERIOD_MSEC,
        max_queue_size: i64 = default::QUEUE,
        drop_policy: String = "newest".to_owned(),
        emit_metric_period_sec: i64 = default::EMIT_METRIC_SEC,
    }
}

table! {
    /// Where fetched blobs are kept.
    ContentStore {
        #[serde(rename = "type")]
        kind: String = "soci".to_owned(),
        containerd_address: String = default::CONTAINERD.to_owned(),
    }
}

table! {
    /// Prefetch lists of images.
    Prefetch {
        enable: bool = false,
        max_concurrency: i64 = 0,
    }
}

table! {
    /// Ways to pull.
    PullModes {
        soci_v1: SociV1 = SociV1::default(),
        soci_v2: SociV2 = SociV2::default(),
        parallel_pull_unpack: ParallelPullUnpack = ParallelPullUnpack::default(),
    }
}

table! {
    /// Images with an index beside them (referrers and the fall-back tag).
    SociV1 {
        enable: bool = false,
    }
}

table! {
    /// Images that name their index themselves.
    SociV2 {
        enable: bool = true,
    }
}

table! {
    /// Pulling whole layers, several at once.
    ParallelPullUnpack {
        enable: bool = false,
        max_concurrent_downloads: i64 = -1,
        max_concurrent_downloads_per_image: i64 = 3,
        concurrent_download_chunk_size: String = String::new(),
        max_concurrent_unpacks: i64 = -1,
        max_concurrent_unpacks_per_image: i64 = 1,
        discard_unpacked_layers: bool = false,
        experimental_parallel_pull_as_fallback: bool = false,
        decompress_streams: BTreeMap<String, DecompressStream> = BTreeMap::new(),
    }
}

table! {
    /// A program that decompresses.
    DecompressStream {
        path: String = String::new(),
        args: Vec<String> = Vec::new(),
    }
}

table! {
    /// Credentials out of Kubernetes secrets.
    KubeconfigKeychain {
        enable_keychain: bool = false,
        kubeconfig_path: String = String::new(),
    }
}

table! {
    /// Credentials out of CRI pulls.
    CriKeychain {
        enable_keychain: bool = false,
        image_service_path: String = default::CONTAINERD.to_owned(),
    }
}

table! {
    /// Registries.
    Resolver {
        auth_client_ttl_sec: i64 = default::AUTH_CLIENT_TTL_SEC,
        enable_auth_client_sharing: bool = false,
        host: BTreeMap<String, ResolverHost> = BTreeMap::new(),
    }
}

table! {
    /// One registry.
    ResolverHost {
        mirrors: Vec<Mirror> = Vec::new(),
    }
}

table! {
    /// Another place of the same blobs.
    Mirror {
        host: String = String::new(),
        insecure: bool = false,
        request_timeout_sec: i64 = 0,
    }
}

table! {
    /// Snapshots.
    SnapshotterTable {
        min_layer_size: i64 = 0,
        allow_invalid_mounts_on_restart: bool = false,
    }
}

table! {
    /// What only we have.
    Spanfs {
        front: String = "auto".to_owned(),
        transport: String = "auto".to_owned(),
        enable_uring: bool = false,
        ztoc_from_full_pull: bool = true,
        complete_blobs: bool = false,
        background_bytes_per_second_max: i64 = 0,
        overlay: Overlay = Overlay::default(),
        credential_providers: CredentialProviders = CredentialProviders::default(),
    }
}

table! {
    /// The kubelet's credential providers, for fetches of ours.
    CredentialProviders {
        config: String = String::new(),
        bin_dir: String = String::new(),
    }
}

table! {
    /// Overlay mounts that containerd makes.
    Overlay {
        mount_options: Vec<String> = Vec::new(),
    }
}

impl RawConfig {
    /// Put the default where the file says 0 or nothing and that means the default.
    pub(super) fn fill(&mut self) {
        let Self { http, blob, directory_cache, fuse, background_fetch: background, .. } = self;
        let fill = |numbers: &mut [(&mut i64, i64)]| {
            for (number, default) in numbers.iter_mut().filter(|(number, _)| **number == 0) {
                **number = *default;
            }
        };
        fill(&mut [
            (&mut self.resolve_result_entry, default::RESOLVE_RESULT_ENTRY),
            (&mut self.max_concurrency, default::MAX_CONCURRENCY),
            (&mut self.mount_timeout_sec, default::MOUNT_TIMEOUT_SEC),
            (&mut self.fuse_metrics_emit_wait_duration_sec, default::FUSE_METRICS_EMIT_WAIT_SEC),
            (&mut self.metadata_insertion_chunk_size, default::METADATA_INSERTION_CHUNK),
            (&mut self.resolver.auth_client_ttl_sec, default::AUTH_CLIENT_TTL_SEC),
            (&mut http.dial_timeout_msec, default::HTTP_TIMEOUT_MSEC),
            (&mut http.response_header_timeout_msec, default::HTTP_TIMEOUT_MSEC),
            (&mut http.request_timeout_msec, default::HTTP_REQUEST_TIMEOUT_MSEC),
            (&mut http.max_retries, default::RETRIES),
            (&mut http.min_wait_msec, default::RETRY_MIN_WAIT_MSEC),
            (&mut http.max_wait_msec, default::RETRY_MAX_WAIT_MSEC),
        ]);
        fill(&mut [
            (&mut blob.valid_interval, default::BLOB_VALID_INTERVAL),
            (&mut blob.fetching_timeout_sec, default::BLOB_FETCHING_TIMEOUT_SEC),
            (&mut blob.max_retries, http.max_retries),
            (&mut blob.min_wait_msec, http.min_wait_msec),
            (&mut blob.max_wait_msec, http.max_wait_msec),
            (&mut directory_cache.max_lru_cache_entry, default::CACHE_ENTRIES),
            (&mut directory_cache.max_cache_fds, default::CACHE_ENTRIES),
            (&mut fuse.attr_timeout, default::FUSE_TIMEOUT_SEC),
            (&mut fuse.entry_timeout, default::FUSE_TIMEOUT_SEC),
            (&mut fuse.negative_timeout, default::FUSE_TIMEOUT_SEC),
            (&mut background.silence_period_msec, default::SILENCE_MSEC),
            (&mut background.fetch_period_msec, default::FETCH_PERIOD_MSEC),
            (&mut background.max_queue_size, default::QUEUE),
            (&mut background.emit_metric_period_sec, default::EMIT_METRIC_SEC),
        ]);
        for (text, default) in [
            (&mut self.metrics_network, "tcp"),
            (&mut self.metadata_store, "db"),
            (&mut background.drop_policy, "newest"),
            (&mut self.content_store.kind, "soci"),
            (&mut self.content_store.containerd_address, default::CONTAINERD),
            (&mut self.cri_keychain.image_service_path, default::CONTAINERD),
        ] {
            if text.is_empty() {
                default.clone_into(text);
            }
        }
    }
}
