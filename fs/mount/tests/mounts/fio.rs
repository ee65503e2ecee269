//! fio's own verification of what it wrote, read back over every road; in long runs.

use std::path::Path;
use std::process::Command;

use spanfs_mount::{Busy, Ended};

use crate::conformance::{PATIENCE, mount, mounter, roads};
use crate::layers::Maker;
use crate::scratch::{Scratch, is_soak, may_mount};

const LEN: &str = "96m";

fn fio(file: &Path, arguments: &[&str]) {
    let mut command = Command::new("fio");
    command.arg("--name=verify").arg(format!("--filename={}", file.display()));
    command.arg(format!("--size={LEN}")).args(["--verify=crc32c", "--verify_interval=4k"]);
    command.arg("--verify_fatal=1").args(arguments);
    let output = command.output().expect("fio is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

#[test]
fn fio_verifies_every_block_that_it_wrote() {
    if !is_soak() {
        return eprintln!("fio's verification is for long runs (SPANFS_TEST_SOAK=1)");
    }
    if !may_mount("fio") {
        return;
    }
    let scratch = Scratch::new();
    let written = scratch.path().join("written");
    fio(&written, &["--rw=write", "--bs=64k", "--do_verify=0"]);
    let mut maker = Maker::default();
    maker.file("fio", 0o644, std::fs::read(&written).unwrap());
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
        for reading in [
            &["--rw=randread", "--bs=4k", "--numjobs=4"][..],
            &["--rw=read", "--bs=1m", "--ioengine=mmap"],
            &["--rw=randread", "--bs=64k", "--ioengine=io_uring", "--iodepth=16"],
        ] {
            fio(&at.join("fio"), &[&["--readonly"], reading].concat());
        }
        assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone, "{road:?}");
    }
}
