//! `spanfs-hold`: started by spanfs with a listening socket as its standard input, and the
//! socket's path as its argument.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Started by spanfs, nobody reads it.
            drop(writeln!(
                std::io::stderr(),
                "spanfs-hold: {error}\n\
                 It is started by spanfs, with a listening socket as its standard input, and keeps the\n\
                 FUSE connections of mounts for the successor of the process that serves them."
            ));
            ExitCode::FAILURE
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
    // Its path, for whoever lists processes, and for us to take away.
    if let Some(path) = std::env::args_os().nth(1) {
        let _gone = std::fs::remove_file(path);
    }
    outcome
}
