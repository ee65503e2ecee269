//! Why a tar is no layer that can be shown.

use alloc::vec::Vec;
use core::fmt;

/// An entry that containerd's applier would refuse as well, or that exceeds a limit of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry \"{}\": {fault}", Shown(entry))]
pub struct TreeError {
    /// Name of the entry as stored.
    pub entry: Vec<u8>,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A path leads through something that is neither a directory nor a symlink to one.
    #[error("parent \"{}\" is not a directory", Shown(component))]
    NotADirectory {
        /// The component in the way.
        component: Vec<u8>,
    },
    /// Symlinks among the parents lead around in circles, or nearly so.
    #[error("more than {max} symlinks on the way")]
    TooManySymlinks {
        /// Limit.
        max: u32,
    },
    /// A name or path longer than Linux can name.
    #[error("{what} of {found} bytes is longer than {max}")]
    TooLong {
        /// Which text.
        what: &'static str,
        /// Its length in bytes.
        found: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// A text that Linux cannot store: a NUL inside, or an empty symlink target.
    #[error("{what} is empty or holds a NUL byte")]
    BadText {
        /// Which text.
        what: &'static str,
    },
    /// `.wh.`, `.wh..` and `.wh...` would hide the directory that holds them, or its parent.
    #[error("whiteout names no entry")]
    BadWhiteout,
    /// A hard link to a name that this layer does not have.
    #[error("hard link to \"{}\", which is not in this layer", Shown(target))]
    LinkMissing {
        /// Target as stored.
        target: Vec<u8>,
    },
    /// A hard link to a directory.
    #[error("hard link to \"{}\", which is a directory", Shown(target))]
    LinkToDirectory {
        /// Target as stored.
        target: Vec<u8>,
    },
    /// Hard links that only lead to each other.
    #[error("hard link to \"{}\" leads back to itself", Shown(target))]
    LinkCycle {
        /// Target as stored.
        target: Vec<u8>,
    },
    /// A number that the inode cannot hold.
    #[error("{what} {found} is outside 0 to {max}")]
    OutOfRange {
        /// Which number.
        what: &'static str,
        /// Its value.
        found: i128,
        /// Largest value allowed.
        max: u64,
    },
    /// Runs of a sparse file that overlap, fall, or leave the file.
    #[error("sparse run at {at} is out of order or outside the file of {size} bytes")]
    BadSparse {
        /// Position of the run in the file.
        at: u64,
        /// Logical size.
        size: u64,
    },
    /// More of something than we hold in memory.
    #[error("layer has more than {max} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// Limit.
        max: u64,
    },
}

/// Bytes of a name as text, cut where hostile.
struct Shown<'a>(&'a [u8]);

const SHOWN_BYTES_MAX: usize = 256;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.0.get(..SHOWN_BYTES_MAX).unwrap_or(self.0);
        let rest = self.0.len() - head.len();
        head.escape_ascii().fmt(f)?;
        if rest > 0 { write!(f, "… ({rest} bytes more)") } else { Ok(()) }
    }
}
