//! User namespaces without a process of their own in them, and mounts that show files by them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

/// A process in a user namespace of its own that does nothing. It ends with this value, or with us.
pub(crate) struct NamespaceKeeper {
    pid: Pid,
    /// The keeper waits for its other end to close.
    pipe: Option<OwnedFd>,
}

impl NamespaceKeeper {
    /// Begin a namespace in which no id is mapped yet.
    pub(crate) fn start() -> io::Result<Self> {
        let (wait, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (wait_number, pipe_number) = (wait.as_raw_fd(), pipe.as_raw_fd());
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: without CLONE_VM and with no stack this is fork(2): the child gets its own copy of
        // everything. Other threads do not exist in it, so it may take no lock: it makes three system
        // calls on numbers and a buffer of its own stack, and ends without unwinding or returning.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: as above; the buffer is one byte long, and the numbers are open in this copy.
            unsafe {
                libc::close(pipe_number);
                libc::read(wait_number, (&raw mut byte).cast(), 1);
                libc::_exit(0)
            }
        }
        match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            Some(pid) if pid.as_raw_pid() > 0 => Ok(Self { pid, pipe: Some(pipe) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }
}

impl Drop for NamespaceKeeper {
    fn drop(&mut self) {
        self.pipe = None;
        // It only waited for that, so this waits for nothing; nobody else waits for this child.
        let _ended = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }
}

/// `struct mount_attr` of `linux/mount.h`, as of its first version.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Have a mount that is not placed yet show the owners that `namespace` maps its files' to, read-only.
pub(crate) fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: both descriptors are borrowed for the call; the path is an empty C string, and the
    // kernel reads exactly the length of `attr` that it is told, which outlives the call.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
