//! Compiles `proto/` in pure Rust: no protoc.

use std::error::Error;

const FILES: [&str; 1] = ["containerd/services/snapshots/v1/snapshots.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
