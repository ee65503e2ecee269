//! Compiles `proto/` in pure Rust: no protoc.

use std::error::Error;

const FILES: [&str; 8] = [
    "containerd/services/content/v1/content.proto",
    "containerd/services/diff/v1/diff.proto",
    "containerd/services/images/v1/images.proto",
    "containerd/services/introspection/v1/introspection.proto",
    "containerd/services/leases/v1/leases.proto",
    "containerd/services/namespaces/v1/namespace.proto",
    "containerd/services/snapshots/v1/snapshots.proto",
    "containerd/services/version/v1/version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".")
        // Thousands of entries, each encoded once.
        .extern_path(
            ".containerd.services.snapshots.v1.ListSnapshotsResponse",
            "crate::grpc::listing::Listing",
        )
        .compile_fds(descriptors)?;
    Ok(())
}
