//! Kernel, FUSE, io_uring, disk.

use std::path::Path;

use rustix::fs::{StatVfs, statfs, statvfs};
use spanfs_fetch::{Engine, EngineKind, EngineOptions};
use spanfs_mount::{policy, probe};

use super::{Finding, nearest};
use crate::quantity::Bytes;

/// Less does not hold one large image.
const FREE_BYTES_MIN: u64 = 2 << 30;
/// Less is full after a few images.
const FREE_BYTES_GOOD: u64 = 20 << 30;
/// Images have tens of thousands of files; those that containerd unpacks take an inode each.
const FREE_INODES_GOOD: u64 = 200_000;

pub(super) fn look(root: &Path) -> Vec<Finding> {
    let mut findings = kernel(root);
    findings.push(io_uring());
    findings.extend(disk(root));
    findings
}

fn kernel(root: &Path) -> Vec<Finding> {
    // Tried where it will be done: the kernel takes files of most file systems, not of all.
    let facts = probe::Facts::gather(&nearest(root));
    let release = &facts.kernel;
    let mut findings = Vec::new();
    findings.push(match &facts.erofs {
        Ok(()) => {
            Finding::ok("kernel", format!("Linux {release}: layers are shown by EROFS over files"))
        }
        Err(reason) if !facts.is_admin => Finding::warning(
            "kernel",
            format!("Linux {release}; EROFS was not tried: {reason}"),
            "run spanfs doctor as root",
        ),
        Err(reason) => Finding::warning(
            "kernel",
            format!("Linux {release}; EROFS over files: {reason}; layers are shown by FUSE alone"),
            "Linux 6.12 or newer with CONFIG_EROFS_FS_BACKED_BY_FILE (modprobe erofs) is faster",
        ),
    });
    findings.push(match &facts.fuse_device {
        Ok(()) => Finding::ok("fuse", "/dev/fuse can be opened"),
        Err(reason) => Finding::fault("fuse", format!("/dev/fuse: {reason}"), "modprobe fuse"),
    });
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_overlay =
        filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    findings.push(match has_overlay {
        true => Finding::ok("overlayfs", "the kernel has it"),
        false => Finding::fault("overlayfs", "the kernel does not list it", "modprobe overlay"),
    });
    findings.extend(choices(&facts));
    findings
}

/// How the daemon shows layers unless its settings want it otherwise; its mounts outlive it.
fn choices(facts: &probe::Facts) -> Vec<Finding> {
    let explained = policy::explain(facts, None, None, true).into_iter();
    let chosen = explained.filter(|it| ["front", "transport"].contains(&it.subject));
    let advice = "see the findings above; containerd unpacks every layer until then";
    chosen
        .map(|it| match it.is_good {
            true => Finding::ok(it.subject, it.text),
            false => Finding::fault(it.subject, it.text, advice),
        })
        .collect()
}

fn io_uring() -> Finding {
    let options = EngineOptions { kind: EngineKind::Ring, ..EngineOptions::default() };
    match Engine::start(options) {
        Ok(_) => Finding::ok("io_uring", "works"),
        Err(error) => Finding::warning(
            "io_uring",
            format!("{error}; threads fetch instead"),
            "look at sysctl kernel.io_uring_disabled and at the seccomp profile",
        ),
    }
}

fn disk(root: &Path) -> Vec<Finding> {
    let place = nearest(root);
    let shown = root.display();
    let (room, kind) = match (statvfs(&place), statfs(&place)) {
        (Ok(room), Ok(kind)) => (room, kind),
        (Err(error), _) | (_, Err(error)) => {
            let found = format!("{}: {error}", place.display());
            return vec![Finding::fault("disk", found, "name another directory with --root")];
        }
    };
    let mut findings = vec![space(&room, root)];
    if let Some(name) = unfit(u64::try_from(kind.f_type).unwrap_or_default()) {
        let found =
            format!("{shown} is on {name}, which cannot hold the upper layers of containers");
        findings.push(Finding::fault("disk", found, "put it on ext4, xfs or btrfs"));
    }
    findings
}

fn space(room: &StatVfs, root: &Path) -> Finding {
    let bytes = room.f_bavail.saturating_mul(room.f_frsize);
    let (free, inodes, shown) = (Bytes(bytes), room.f_favail, root.display());
    let found = format!("{free} and {inodes} inodes are free for {shown}");
    // Some filesystems count no inodes.
    let few_inodes = room.f_files > 0 && inodes < FREE_INODES_GOOD;
    let advice = "make room, or put the state directory on another disk";
    match bytes {
        ..FREE_BYTES_MIN => Finding::fault("disk", found, advice),
        FREE_BYTES_MIN..FREE_BYTES_GOOD => Finding::warning("disk", found, advice),
        _ if few_inodes => Finding::warning("disk", found, advice),
        _ => Finding::ok("disk", found),
    }
}

/// Filesystems that overlayfs takes no upper layer on.
fn unfit(kind: u64) -> Option<&'static str> {
    Some(match kind {
        0x794c_7630 => "overlayfs",
        0x6969 => "NFS",
        0x6573_5546 => "FUSE",
        0x4d44 => "FAT",
        0xff53_4d42 => "CIFS",
        _ => return None,
    })
}
