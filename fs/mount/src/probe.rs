//! What this machine and this process can do: facts, tried rather than guessed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use spanfs_layer::erofs::{self, Device};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};

use crate::transport::{self, Privilege};
use crate::{front, unmount};

/// Facts that decide how layers are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Release of the kernel as uname(2) tells it.
    pub kernel: String,
    /// `CAP_SYS_ADMIN` is effective.
    pub is_admin: bool,
    /// A file-backed EROFS mount with 512-byte blocks was tried; why not, if it failed.
    pub erofs: Result<(), String>,
    /// `/dev/fuse` was opened; why not, if it failed.
    pub fuse_device: Result<(), String>,
    /// Why FUSE requests can't come by io_uring, if they can't.
    pub uring: Result<(), String>,
    /// Where `fusermount3` is.
    pub fusermount: Option<PathBuf>,
    /// This process may make user namespaces, as far as `/proc/sys/user` tells.
    pub user_namespaces: bool,
}

impl Facts {
    /// Find out. `scratch` is a directory for a mount of a moment.
    pub fn gather(scratch: &Path) -> Self {
        let is_admin = is_admin();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            is_admin,
            erofs: if is_admin { try_erofs(scratch) } else { Err("needs CAP_SYS_ADMIN".into()) },
            fuse_device: File::options()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .map(drop)
                .map_err(|error| error.to_string()),
            uring: uring(),
            fusermount: find_program("fusermount3"),
            user_namespaces: user_namespaces(),
        }
    }
}

/// The switch of FUSE over io_uring: a parameter of the kernel's module, off unless somebody turned
/// it on. Kernels before 6.14 don't have it.
const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";

/// Why FUSE requests can't come by io_uring, if they can't, as far as can be told without a mount.
pub fn uring() -> Result<(), String> {
    match std::fs::read_to_string(ENABLE_URING) {
        Ok(value) if value.trim() == "Y" => {}
        Ok(value) => return Err(format!("{ENABLE_URING} is {}", value.trim())),
        Err(error) => return Err(format!("{ENABLE_URING}: {error}")),
    }
    transport::try_ring().map_err(|error| format!("io_uring: {error}"))
}

/// Switch FUSE over io_uring on, for the whole machine. Needs root.
pub fn enable_uring() -> io::Result<()> {
    std::fs::write(ENABLE_URING, "Y")
}

fn is_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_SYS_ADMIN & 1 == 1)
}

fn user_namespaces() -> bool {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let debian = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
    limit.is_ok_and(|count| count.trim() != "0") && debian.map_or(true, |flag| flag.trim() != "0")
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// What the kernel says of files that it can't read as a filesystem.
fn not_block_device() -> String {
    io::Error::from(rustix::io::Errno::NOTBLK).to_string()
}

/// Mount an empty layer for a moment.
fn try_erofs(scratch: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot be tried in {}: {error}", scratch.display());
    let directory = scratch.join(format!("probe-{}", std::process::id()));
    std::fs::create_dir_all(&directory).map_err(failed)?;
    let outcome = mount_empty_layer(&directory);
    let _leftover = std::fs::remove_dir_all(&directory); // Names files of ours, and no mount.
    outcome
}

fn mount_empty_layer(directory: &Path) -> Result<(), String> {
    let tree = TreeBuilder::new(TreeOptions::default()).finish().map_err(|e| e.to_string())?;
    let device = Device { len: 512, tag: b"probe" };
    let index = erofs::write(&tree, &[device]).map_err(|error| error.to_string())?;
    let (index_path, data_path) = (directory.join("index"), directory.join("data"));
    let mount_point = directory.join("mount");
    let prepare = || -> io::Result<File> {
        std::fs::write(&index_path, &index.bytes)?;
        std::fs::write(&data_path, [0; 512])?;
        std::fs::create_dir(&mount_point)?;
        File::open(&data_path)
    };
    let data = prepare().map_err(|error| error.to_string())?;
    front::erofs::mount(&index_path, data.as_fd(), &mount_point).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let hint = match cause.contains(&not_block_device()) {
            true => "; files of this file system (tmpfs?) can't be mounted",
            false => "",
        };
        format!("{error}: {cause}{hint}")
    })?;
    unmount::detach(&mount_point, Privilege::Root).map_err(|error| error.to_string())
}
