//! Programs in a node's namespaces, and never waiting for one without a deadline: a test that waits
//! too long panics with what it waited for.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use spanfs_node::Inside;

pub(crate) use spanfs_node::{Ended, signal};

/// Waits until `found` gives something; panics with `what` after `patience`.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut found: impl FnMut() -> Option<T>,
) -> T {
    let mut result = None;
    let is_found = spanfs_node::wait_for(patience, || {
        result = found();
        Ok(result.is_some())
    });
    assert!(is_found.expect("no error to wait for"), "{what}: not within {patience:?}");
    result.expect("it was found")
}

/// Runs a program to its end, which comes within `patience`, or panics.
pub(crate) fn run_for(command: &mut Command, patience: Duration) -> Ended {
    spanfs_node::run_for(command, patience, &|| false)
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Ends a program with a signal and waits until it is gone.
pub(crate) fn end(inside: Inside, with: Signal, patience: Duration) {
    let is_gone = inside.end(with, patience).expect("a child");
    assert!(is_gone, "the end of a process: not within {patience:?}");
}
