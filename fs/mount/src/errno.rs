//! The one place where an errno is chosen.

use std::fmt;

use spanfs_cache::ReadError;

/// Why a request of the kernel is refused, as the reader of the mount will see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// No such name, or an inode number that we never gave out.
    NotFound,
    /// A name that no directory can hold.
    NameTooLong,
    /// A directory operation on something else.
    NotDirectory,
    /// Reading a directory as a file.
    IsDirectory,
    /// Not a symbolic link, or a request that makes no sense.
    Invalid,
    /// No such extended attribute.
    NoAttribute,
    /// The bytes can't be had: the network failed, the layer is corrupt, the disk refused.
    InputOutput,
}

impl Errno {
    /// The number, positive (`asm-generic/errno-base.h`, `asm-generic/errno.h`).
    pub fn code(self) -> i32 {
        use rustix::io::Errno as Code;
        match self {
            Self::NotFound => Code::NOENT,
            Self::NameTooLong => Code::NAMETOOLONG,
            Self::NotDirectory => Code::NOTDIR,
            Self::IsDirectory => Code::ISDIR,
            Self::Invalid => Code::INVAL,
            Self::NoAttribute => Code::NODATA,
            Self::InputOutput => Code::IO,
        }
        .raw_os_error()
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.code()).fmt(f)
    }
}

impl std::error::Error for Errno {}

/// Whatever the reason, a reader must neither see wrong bytes nor believe that a file is gone.
impl From<&ReadError> for Errno {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::Unavailable(_) | ReadError::Corrupt(_) | ReadError::Storage(_) => {
                Self::InputOutput
            }
        }
    }
}
