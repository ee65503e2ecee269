//! `spanfs-hold`: started by spanfs with a listening socket as its standard input. The socket's path as
//! its argument is for those who list processes.
#![no_main]

mod sys;

use std::ffi::{OsStr, c_int};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::net::{SocketAddrAny, SocketAddrUnix};

/// All of the program; returns its exit status.
fn run() -> c_int {
    match hold() {
        Ok(()) => 0,
        Err(error) => {
            // Started by spanfs, nobody reads it.
            drop(writeln!(
                std::io::stderr(),
                "spanfs-hold: {error}\n\
                 It is started by spanfs, with a listening socket as its standard input, and keeps the\n\
                 FUSE connections of mounts for the successor of the process that serves them."
            ));
            1
        }
    }
}

fn hold() -> std::io::Result<()> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    let is_listening = rustix::net::sockopt::socket_acceptconn(&listener).unwrap_or(false);
    if !is_listening {
        return Err(std::io::Error::other("standard input is no listening socket"));
    }
    // Signals of our parent's terminal and session are not for us.
    let _leads_one = rustix::process::setsid();
    std::env::set_current_dir("/")?;
    // We are tiny, and all mounts hang on us: others go first where memory is short.
    let _not_allowed = std::fs::write("/proc/self/oom_score_adj", "-999");
    let outcome = spanfs_hold::serve(&listener);
    take_away(&listener);
    outcome
}

/// Nobody is to look for us where we listened.
fn take_away(listener: &OwnedFd) {
    let bound: Option<SocketAddrUnix> =
        rustix::net::getsockname(listener).ok().and_then(|it: SocketAddrAny| it.try_into().ok());
    if let Some(path) = bound.as_ref().and_then(SocketAddrUnix::path_bytes) {
        let _gone = std::fs::remove_file(OsStr::from_bytes(path));
    }
}
