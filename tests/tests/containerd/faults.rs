//! The registry fails while containers start: an answer in time, nothing half done, and the next try
//! works.

use std::time::{Duration, Instant};

use spanfs_layer::Digest;
use spanfs_registry::{Fault, Faults, Nth, Registry, Rule};
use spanfs_snapshotter::grpc::proto::snapshots::Kind;

use crate::cri::Cri;
use crate::image::noise;
use crate::lazy::{V1_ONLY, assert_lazy, image, pull_by_cri};
use crate::node::{Node, Setup};
use crate::own_view::consistent_snapshots;
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(
    reader_gets_an_error_in_time,
    index_out_of_reach_defers_to_containerd,
    lost_layer_fails_the_pull_and_the_next_one_works,
);

/// Small limits, so that giving up is quick.
const LIMITS: &str = r#"mount_timeout_sec = 5
[http]
  MaxRetries = 2
  MinWaitMsec = 10
  MaxWaitMsec = 100
  RequestTimeoutMsec = 3000
[blob]
  max_retries = 2
  min_wait_msec = 10
  max_wait_msec = 100
  fetching_timeout_sec = 5
[background_fetch]
  disable = true
"#;
/// What the limits above may add up to, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(45);

fn reader_gets_an_error_in_time(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let (reference, _) = image.push_indexed(&registry, "test/faulty", "v2");
    let (large, _) = image.blob(1);
    let node = Node::start(&Setup { config: LIMITS, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    let ctr = node.within("k8s.io");
    for (number, fault) in
        [Fault::Status(503), Fault::Stall { after: 1000 }, Fault::Reset { after: 0 }]
            .into_iter()
            .enumerate()
    {
        // Far from what earlier readers have brought along.
        let file = 2 + 9 * number;
        let path = format!("/data/{file}");
        let rule = Rule::get(large.to_string(), Nth::Every, fault.clone());
        registry.set_faults(Faults::script([rule]));
        let start = Instant::now();
        let script = format!("sha256sum {path} 2>/dev/null || echo failed");
        let said = ctr.run(&reference, &format!("fails-{number}"), &["/bin/sh", "-c", &script]);
        assert_eq!(said, "failed\n", "{fault:?}");
        assert!(start.elapsed() < IN_TIME, "{fault:?} took {:?}", start.elapsed());
        registry.set_faults(Faults::none());
        let said = ctr.run(&reference, &format!("reads-{number}"), &["/bin/sha256sum", &path]);
        let digest = Digest::of(&noise(file as u64, 1 << 20));
        assert_eq!(said, format!("{}  {path}\n", digest.hex()), "after {fault:?}");
    }
}

/// The index belongs to us alone: without it, the image is as good as one that has none.
fn index_out_of_reach_defers_to_containerd(version: Version) {
    for fault in [Fault::Status(500), Fault::Stall { after: 10 }, Fault::Flip { at: 40 }] {
        let registry = Registry::builder().start().expect("a registry");
        let (reference, index) = image().push_indexed(&registry, "test/index", "v1");
        let rule = Rule::get(index.to_string(), Nth::Every, fault.clone());
        registry.set_faults(Faults::script([rule]));
        let config = format!("{LIMITS}{V1_ONLY}");
        let node = Node::start(&Setup { config: &config, ..Setup::of(version) });
        let start = Instant::now();
        pull_by_cri(&node, &reference);
        assert!(start.elapsed() < IN_TIME, "{fault:?} took {:?}", start.elapsed());
        assert_lazy(&node, 0);
        let ctr = node.within("k8s.io");
        assert_eq!(ctr.run(&reference, "once", &[]), "ready\n", "{fault:?}");
    }
}

fn lost_layer_fails_the_pull_and_the_next_one_works(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let image = image();
    let reference = image.push(&registry, "test/lost", "1");
    let (large, _) = image.blob(1);
    let rule = Rule::get(large.to_string(), Nth::Every, Fault::Status(404));
    registry.set_faults(Faults::script([rule]));
    let node = Node::start(&Setup { config: LIMITS, ..Setup::of(version) });
    let mut cri = Cri::connect(&node, "run/containerd/containerd.sock");
    let start = Instant::now();
    cri.pull(&reference, None).expect_err("a layer is missing");
    assert!(start.elapsed() < IN_TIME, "it took {:?}", start.elapsed());
    for info in consistent_snapshots(&node) {
        let is_lost = info.kind() == Kind::Committed && info.name.ends_with(&image.chain(1));
        assert!(!is_lost, "half a layer was committed: {info:?}");
    }
    registry.set_faults(Faults::none());
    // What the failed pull has left goes now: 1.6 only looks at a layer that is there, and may collect
    // it before it is built upon, whatever the snapshotter.
    node.within("k8s.io").collect_garbage();
    cri.pull(&reference, None).expect("the layer is there again");
    assert_eq!(node.within("k8s.io").run(&reference, "once", &[]), "ready\n");
}
