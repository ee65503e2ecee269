//! The only place where a gRPC status is chosen.

use tonic::{Code, Status};

use crate::daemon::log::chain;
use crate::snapshotter::Failure;
use crate::state::Refusal;

/// The status of a failed call, with all causes in its message.
pub(super) fn status(failure: &Failure) -> Status {
    Status::new(code(failure), chain(failure))
}

fn code(failure: &Failure) -> Code {
    match failure {
        Failure::Refused(refusal) => refused(refusal),
        Failure::Filter(_) => Code::InvalidArgument,
        Failure::LayerExists(_) => Code::AlreadyExists,
        Failure::Unavailable { .. } | Failure::Layer { .. } => Code::Unavailable,
        Failure::Store(error) if error.is_full() => Code::ResourceExhausted,
        Failure::Directory(error) if error.is_full() => Code::ResourceExhausted,
        Failure::Store(_)
        | Failure::Directory(_)
        | Failure::Usage(_)
        | Failure::Layers(_)
        | Failure::Owners(_)
        | Failure::Root(_) => Code::Internal,
    }
}

pub(super) fn refused(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::NotFound(_) => Code::NotFound,
        Refusal::AlreadyExists(_) => Code::AlreadyExists,
        Refusal::Invalid(_) => Code::InvalidArgument,
        Refusal::Precondition(_) => Code::FailedPrecondition,
    }
}
