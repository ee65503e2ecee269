//! EROFS: the kernel knows names and attributes from the layer index, and reads the layer file.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mount::MountAttrFlags;
use spanfs_layer::erofs;

use crate::kernel_mount::{Context, KernelMountError, ShortPath, through};

/// The layer file of an index, in the ways in which the kernel shall read it.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// For small files, or all.
    pub small: BorrowedFd<'a>,
    /// For large files, where the index has them in a device of their own.
    pub large: BorrowedFd<'a>,
    /// For what [shortcuts](crate::shortcuts) lead past these two, where the index has a device for it.
    pub direct: BorrowedFd<'a>,
}

impl<'a> From<BorrowedFd<'a>> for Data<'a> {
    fn from(file: BorrowedFd<'a>) -> Self {
        Self { small: file, large: file, direct: file }
    }
}

/// Mount the index at path `index`, with `data` as its single layer file.
///
/// The index must be one that we wrote, for this very layer: the kernel trusts it, and compares
/// nothing. Needs `CAP_SYS_ADMIN` and a kernel from 6.12.
pub fn mount<'a>(
    index: &Path,
    data: impl Into<Data<'a>>,
    mount_point: &Path,
) -> Result<(), KernelMountError> {
    // Devices and setuid programs work, as they do in a directory of unpacked files.
    make(index, data.into(), mount_point, |it| it.mount(MountAttrFlags::MOUNT_ATTR_RDONLY))
}

/// The same below what is mounted there, which must be unmounted for it to be seen.
pub(crate) fn mount_beneath<'a>(
    index: &Path,
    data: impl Into<Data<'a>>,
    mount_point: &Path,
) -> Result<(), KernelMountError> {
    make(index, data.into(), mount_point, |it| it.mount_beneath(MountAttrFlags::MOUNT_ATTR_RDONLY))
}

fn make(
    index: &Path,
    data: Data<'_>,
    mount_point: &Path,
    place: impl FnOnce(Context) -> Result<(), KernelMountError>,
) -> Result<(), KernelMountError> {
    let context = Context::open("erofs", mount_point)?;
    // The kernel opens it when the mount is made: until then the short name must stay.
    let short = ShortPath::to(index);
    let source = short.as_ref().map_or(index.as_os_str(), ShortPath::as_os_str);
    context.set("source", source)?;
    for device in [data.small, data.large, data.direct].into_iter().take(device_count(index)) {
        context.set("device", AsRef::<OsStr>::as_ref(&through(device)))?;
    }
    place(context)
}

/// Bytes of an index that say what it is.
pub(crate) const HEAD_LEN: usize = 2048;

/// Devices that an index wants, one or three. What can't be read the kernel refuses with a reason.
fn device_count(index: &Path) -> usize {
    let mut head = [0; HEAD_LEN];
    let read = File::open(index).and_then(|file| file.read_at(&mut head, 0));
    let count = read.ok().and_then(|len| erofs::device_count(head.get(..len)?));
    count.map_or(1, usize::from)
}
