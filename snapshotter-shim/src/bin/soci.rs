//! `soci`: SOCI indexes of images in containerd.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1);
    let line: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    spanfs_snapshotter::soci::main(&line)
}
