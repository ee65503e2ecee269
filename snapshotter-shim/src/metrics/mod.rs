//! Numbers for Prometheus, under the peer's names, so that dashboards go on working.
//!
//! The text form is written by hand: client libraries of the newer form rename counters.

mod text;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use text::{Family, Text};

/// Something that takes time; names are the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A layer from its labels to its mount.
    Mount,
    /// The mount alone.
    FuseMount,
    /// Finding and reading an image's index.
    IndexFetch,
    /// Fetching all zTOCs of an image.
    ZtocFetch,
    /// Making or finding the index of a layer, which tells the kernel its files.
    IndexLayer,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::FuseMount => "fuse_mount",
            Self::IndexFetch => "soci_index_fetch",
            Self::ZtocFetch => "ztoc_fetch",
            Self::IndexLayer => "init_metadata_store",
        }
    }
}

/// Something that happens; names are the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A layer could not be shown lazily.
    MountFailure,
    /// A layer could not be had whole.
    LocalMountFailure,
}

impl Event {
    const ALL: [Self; 2] = [Self::MountFailure, Self::LocalMountFailure];

    fn name(self) -> &'static str {
        match self {
            Self::MountFailure => "fuse_mount_failure_count",
            Self::LocalMountFailure => "local_mount_failure_count",
        }
    }
}

/// A layer at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct LayerSample {
    /// Digest of its blob.
    pub digest: String,
    /// Where it is shown.
    pub mount_point: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of it that were fetched.
    pub fetched: u64,
    /// Spans asked of the registry.
    pub fetches: u64,
    /// Spans that could not be had.
    pub failures: u64,
    /// It is served by this process.
    pub is_served: bool,
}

/// The node at the moment of a scrape.
#[derive(Clone, Debug, Default)]
pub struct NodeSample {
    /// Snapshots by the name of their kind.
    pub snapshots: BTreeMap<&'static str, u64>,
    /// Layers asked for since the start, by what became of them.
    pub decided: BTreeMap<String, u64>,
    /// Bytes on disk of all layers in the cache.
    pub disk_bytes: u64,
    /// Bytes of spans kept in memory, where the disk has no room.
    pub memory_bytes: u64,
    /// Bytes asked of registries that have not come yet.
    pub inflight_bytes: u64,
    /// Reads that wait for bytes.
    pub waiting: u64,
}

/// Upper bounds of the peer's buckets in milliseconds: 1, 2, 4, ... 16384.
const BUCKETS: u32 = 15;
/// Layers with a histogram of their own; beyond, they share one.
const LAYERS_MAX: usize = 4096;

#[derive(Clone, Debug, Default)]
struct Histogram {
    /// By bucket, not yet summed up; the last one has no bound.
    counts: [u64; BUCKETS as usize + 1],
    sum_ms: f64,
}

/// What was counted since the start.
#[derive(Debug)]
pub struct Metrics {
    since: Instant,
    durations: Mutex<BTreeMap<(Operation, String), Histogram>>,
    events: Mutex<BTreeMap<Event, u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let (durations, events) = Default::default();
        Self { since: Instant::now(), durations, events }
    }
}

impl Metrics {
    /// An operation on `layer` took so long.
    pub fn took(&self, operation: Operation, layer: &str, duration: Duration) {
        let mut durations = self.durations.lock();
        let known = (operation, layer.to_owned());
        let is_new = !durations.contains_key(&known);
        let key = if is_new && durations.len() >= LAYERS_MAX {
            (operation, String::new())
        } else {
            known
        };
        let histogram = durations.entry(key).or_default();
        let ms = duration.as_secs_f64() * 1000.0;
        let bucket = (0..BUCKETS).find(|&bucket| ms <= f64::from(1u32 << bucket));
        let bucket = bucket.unwrap_or(BUCKETS) as usize;
        histogram.counts[bucket] += 1;
        histogram.sum_ms += ms;
    }

    /// Something happened.
    pub fn count(&self, event: Event) {
        *self.events.lock().entry(event).or_default() += 1;
    }

    /// Everything as Prometheus reads it.
    pub fn render(&self, layers: &[LayerSample], node: &NodeSample) -> String {
        let mut text = Text::default();
        self.durations(&mut text);
        self.counts(&mut text, layers);
        let each = |text: &mut Text, value: fn(&LayerSample) -> u64| {
            for layer in layers {
                let labels = [("digest", &*layer.digest), ("mountpoint", &*layer.mount_point)];
                text.sample("", &labels, value(layer) as f64);
            }
        };
        let help = "Bytes of a layer that were fetched.";
        text.family(Family::Counter, "soci_fs_layer_fetched_size_bytes", help);
        each(&mut text, |layer| layer.fetched);
        text.family(Family::Counter, "soci_fs_layer_size_bytes", "Bytes of a layer.");
        each(&mut text, |layer| layer.size);
        text.family(Family::Gauge, "spanfs_layers", "Layers that are shown.");
        text.sample("", &[], layers.len() as f64);
        let served = layers.iter().filter(|layer| layer.is_served).count();
        let help = "Layers whose mounts need this process.";
        text.family(Family::Gauge, "spanfs_layers_served", help);
        text.sample("", &[], served as f64);
        node_samples(&mut text, node);
        self.process(&mut text);
        text.0
    }

    fn durations(&self, text: &mut Text) {
        let name = "soci_fs_operation_duration_milliseconds";
        text.family(Family::Histogram, name, "Time of operations in milliseconds.");
        for ((operation, layer), histogram) in &*self.durations.lock() {
            let (operation, mut sum) = (operation.name(), 0);
            for (bucket, count) in histogram.counts.iter().enumerate() {
                sum += count;
                let bound = match bucket < BUCKETS as usize {
                    true => (1u32 << bucket).to_string(),
                    false => "+Inf".to_owned(),
                };
                let labels =
                    [("operation_type", operation), ("layer", layer.as_str()), ("le", &bound)];
                text.sample("_bucket", &labels, sum as f64);
            }
            let labels = [("operation_type", operation), ("layer", layer.as_str())];
            text.sample("_sum", &labels, histogram.sum_ms);
            text.sample("_count", &labels, sum as f64);
        }
    }

    fn counts(&self, text: &mut Text, layers: &[LayerSample]) {
        let name = "soci_fs_operation_count";
        text.family(Family::Counter, name, "Number of operations.");
        let events = self.events.lock();
        for event in Event::ALL {
            let labels = [("operation_type", event.name()), ("layer", "")];
            text.sample("", &labels, events.get(&event).copied().unwrap_or(0) as f64);
        }
        let failures: u64 = layers.iter().map(|layer| layer.failures).sum();
        for (operation, value) in
            [("fuse_failure_state", failures), ("background_fetch_work_queue_evicted", 0)]
        {
            let labels = [("operation_type", operation), ("layer", "")];
            text.sample("", &labels, value as f64);
        }
        for layer in layers {
            let operation = "synchronous_read_remote_registry_fetch_count";
            let labels = [("operation_type", operation), ("layer", layer.digest.as_str())];
            text.sample("", &labels, layer.fetches as f64);
        }
    }

    fn process(&self, text: &mut Text) {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key))?;
            value.split_whitespace().next()?.parse::<u64>().ok()
        };
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let resident = number("VmRSS:").unwrap_or(0) * 1024;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory.", resident as f64),
            ("process_open_fds", "Open files.", files as f64),
            ("process_threads", "Threads.", number("Threads:").unwrap_or(0) as f64),
            ("process_uptime_seconds", "Time since the start.", self.since.elapsed().as_secs_f64()),
        ] {
            text.family(Family::Gauge, name, help);
            text.sample("", &[], value);
        }
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let help = "Time that cores worked for this process.";
        text.family(Family::Counter, "process_cpu_seconds_total", help);
        text.sample("", &[], used.tv_sec as f64 + used.tv_nsec as f64 / 1e9);
    }
}

fn node_samples(text: &mut Text, node: &NodeSample) {
    text.family(Family::Gauge, "spanfs_snapshots", "Snapshots.");
    for (kind, count) in &node.snapshots {
        text.sample("", &[("kind", kind)], *count as f64);
    }
    let help = "Layers that were asked for, by what became of them.";
    text.family(Family::Counter, "spanfs_layers_decided_total", help);
    for (outcome, count) in &node.decided {
        text.sample("", &[("outcome", outcome)], *count as f64);
    }
    for (name, help, value) in [
        ("spanfs_cache_disk_bytes", "Disk that layers in the cache take.", node.disk_bytes),
        ("spanfs_cache_memory_bytes", "Spans in memory for want of disk.", node.memory_bytes),
        ("spanfs_inflight_bytes", "Bytes asked of registries.", node.inflight_bytes),
        ("spanfs_waiting_reads", "Reads that wait for bytes.", node.waiting),
    ] {
        text.family(Family::Gauge, name, help);
        text.sample("", &[], value as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_buckets_are_the_peers() {
        let metrics = Metrics::default();
        metrics.took(Operation::Mount, "sha256:1", Duration::from_micros(1500));
        metrics.took(Operation::Mount, "sha256:1", Duration::from_secs(60));
        metrics.count(Event::MountFailure);
        let layer = LayerSample {
            digest: "sha256:1".into(),
            mount_point: "/a\"b\\c\nd".into(),
            size: 10,
            fetched: 4,
            ..LayerSample::default()
        };
        let text = metrics.render(&[layer], &NodeSample::default());
        let name = "soci_fs_operation_duration_milliseconds";
        let labels = "operation_type=\"mount\",layer=\"sha256:1\"";
        for line in [
            format!("# TYPE {name} histogram"),
            format!("{name}_bucket{{{labels},le=\"1\"}} 0"),
            format!("{name}_bucket{{{labels},le=\"2\"}} 1"),
            format!("{name}_bucket{{{labels},le=\"16384\"}} 1"),
            format!("{name}_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("{name}_sum{{{labels}}} 60001.5"),
            format!("{name}_count{{{labels}}} 2"),
            "soci_fs_operation_count{operation_type=\"fuse_mount_failure_count\",layer=\"\"} 1"
                .to_owned(),
            "soci_fs_operation_count{operation_type=\"local_mount_failure_count\",layer=\"\"} 0"
                .to_owned(),
            "soci_fs_layer_fetched_size_bytes{digest=\"sha256:1\",mountpoint=\"/a\\\"b\\\\c\\nd\"} 4"
                .to_owned(),
            "spanfs_layers 1".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    /// The board shows nothing that is not there: each name in its queries is served.
    #[test]
    fn every_metric_of_the_board_exists() {
        fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(map) => {
                    found.extend(map.get("expr").and_then(|it| it.as_str()).map(str::to_owned));
                    map.values().for_each(|value| queries(value, found));
                }
                serde_json::Value::Array(list) => {
                    list.iter().for_each(|value| queries(value, found));
                }
                _ => {}
            }
        }
        let board = include_str!("../../grafana/spanfs.json");
        let board: serde_json::Value = serde_json::from_str(board).unwrap();
        let mut all = Vec::new();
        queries(&board, &mut all);
        assert!(all.len() >= 10, "{} queries", all.len());
        let metrics = Metrics::default();
        metrics.took(Operation::Mount, "sha256:1", Duration::ZERO);
        let node = NodeSample {
            snapshots: BTreeMap::from([("active", 1)]),
            decided: BTreeMap::from([("lazy".to_owned(), 1)]),
            ..NodeSample::default()
        };
        let text = metrics.render(&[LayerSample::default()], &node);
        let name = regex::Regex::new(r"\b(?:soci|spanfs|process)_[a-z_]+\b").unwrap();
        for query in &all {
            let mut names = name.find_iter(query).peekable();
            assert!(names.peek().is_some(), "{query} asks for nothing of ours");
            for name in names {
                let is_served = |line: &str| {
                    line.strip_prefix(name.as_str())
                        .is_some_and(|rest| rest.starts_with(['{', ' ']))
                };
                assert!(text.lines().any(is_served), "{} of {query} is not served", name.as_str());
            }
        }
    }

    #[test]
    fn layers_without_end_share_a_histogram() {
        let metrics = Metrics::default();
        for number in 0..LAYERS_MAX + 10 {
            metrics.took(Operation::Mount, &number.to_string(), Duration::ZERO);
        }
        assert!(metrics.durations.lock().len() <= LAYERS_MAX + 1);
    }
}
