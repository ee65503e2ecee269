//! EROFS: the kernel knows names and attributes from the layer index, and reads the layer file.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;

use crate::kernel_mount::{Context, KernelMountError, ShortPath, through};

/// Mount the index at path `index`, with `data` as its single layer file.
///
/// The index must be one that we wrote, for this very layer: the kernel trusts it, and compares
/// nothing. Needs `CAP_SYS_ADMIN` and a kernel from 6.12.
pub fn mount(
    index: &Path,
    data: BorrowedFd<'_>,
    mount_point: &Path,
) -> Result<(), KernelMountError> {
    // Devices and setuid programs work, as they do in a directory of unpacked files.
    make(index, data, mount_point, |it| it.mount(MountAttrFlags::MOUNT_ATTR_RDONLY))
}

/// The same below what is mounted there, which must be unmounted for it to be seen.
pub(crate) fn mount_beneath(
    index: &Path,
    data: BorrowedFd<'_>,
    mount_point: &Path,
) -> Result<(), KernelMountError> {
    make(index, data, mount_point, |it| it.mount_beneath(MountAttrFlags::MOUNT_ATTR_RDONLY))
}

fn make(
    index: &Path,
    data: BorrowedFd<'_>,
    mount_point: &Path,
    place: impl FnOnce(Context) -> Result<(), KernelMountError>,
) -> Result<(), KernelMountError> {
    let context = Context::open("erofs", mount_point)?;
    // The kernel opens it when the mount is made: until then the short name must stay.
    let short = ShortPath::to(index);
    let source = short.as_ref().map_or(index.as_os_str(), ShortPath::as_os_str);
    context.set("source", source)?;
    let device = through(data);
    context.set("device", AsRef::<OsStr>::as_ref(&device))?;
    place(context)
}
