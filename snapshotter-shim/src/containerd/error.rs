//! What can go wrong between us and containerd.

use std::time::Duration;

use spanfs_layer::Digest;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("connecting to containerd at {address}: {reason}")]
    Connect {
        /// Path of the socket.
        address: String,
        /// What the last attempt said.
        reason: String,
    },
    /// A value that can't be sent.
    #[error("{what} can't be sent to containerd: {reason}")]
    Argument {
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// containerd refused; the text is its own, as other tools show it.
    #[error("{message}")]
    Refused {
        /// What was attempted.
        what: String,
        /// Kind of refusal.
        fault: Fault,
        /// containerd's words.
        message: String,
    },
    /// No answer in time.
    #[error("{what}: no answer from containerd within {time:?}")]
    Late {
        /// What was attempted.
        what: String,
        /// The limit.
        time: Duration,
    },
    /// An answer that can't be.
    #[error("{what}: expected {expected}, found {found}")]
    Corrupt {
        /// What was attempted.
        what: String,
        /// What should have come.
        expected: String,
        /// What came.
        found: String,
    },
    /// A blob larger than who asked can take.
    #[error("blob {digest} has {found} bytes, at most {max} are allowed")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its bytes.
        found: u64,
        /// The limit.
        max: u64,
    },
}

/// Kinds of refusal that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no such thing.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// Busy or gone for the moment: try again.
    Unavailable,
    /// What was written is not what was announced, or something stands in the way.
    FailedPrecondition,
    /// Anything else.
    Other(Code),
}

impl ClientError {
    pub(crate) fn of(what: &str, status: &Status) -> Self {
        let fault = match status.code() {
            Code::NotFound => Fault::NotFound,
            Code::AlreadyExists => Fault::AlreadyExists,
            Code::Unavailable => Fault::Unavailable,
            Code::FailedPrecondition => Fault::FailedPrecondition,
            other => Fault::Other(other),
        };
        let message = match status.message() {
            "" => format!("{what}: {}", status.code().description()),
            message => message.to_owned(),
        };
        Self::Refused { what: what.to_owned(), fault, message }
    }

    /// Kind of refusal, if it is one.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused { fault, .. } => Some(*fault),
            _ => None,
        }
    }

    /// True if containerd has no such thing.
    pub fn is_not_found(&self) -> bool {
        self.fault() == Some(Fault::NotFound)
    }
}
