//! The `soci` command: SOCI indexes of images in containerd, made, listed, pushed, converted.
//!
//! Command line, tables, messages and exit status are those of the peer's release 0.15, so that
//! scripts and nerdctl take one for the other. Knows nothing of mounts. From the outside in:
//! [`grammar`] understands the command line, `command` has a module for each command, [`image`]
//! finds the manifests of an image, [`build`] makes zTOCs, [`store`] and [`artifacts`] keep them.
//! `life` sees to it that nothing stays behind, however a command ends.
//!
//! Invariant: an index is written after all that it names, and recorded after it is written.

pub mod artifacts;
pub mod build;
mod command;
pub(crate) mod duration;
mod error;
pub mod grammar;
pub mod image;
mod json;
mod life;
mod output;
pub mod platforms;
mod requests;
mod session;
mod spec;
pub mod store;
mod table;

pub use error::SociError;
pub use output::Output;
pub use spec::PROGRAM;

use std::io::Write as _;
use std::process::ExitCode;

use grammar::{Asked, GrammarError};

/// The release whose command line this is: nerdctl asks for at least 0.10.
const VERSION: &str = "v0.15.0";
/// Given by who builds a release.
const REVISION: &str = match option_env!("SPANFS_REVISION") {
    Some(revision) => revision,
    None => "<unknown>",
};
/// Status of a command that does not exist.
const NO_COMMAND: u8 = 3;

/// Run the command line `line`, which begins behind the program's name.
pub fn main(line: &[String]) -> ExitCode {
    match grammar::parse(&PROGRAM, line, |name| std::env::var(name).ok()) {
        Ok(Asked::Version) => {
            say(&format!("soci version {VERSION} spanfs-{REVISION}\n"));
            ExitCode::SUCCESS
        }
        Ok(Asked::Help(path)) => {
            say(&grammar::help(&PROGRAM, &path));
            ExitCode::SUCCESS
        }
        Ok(Asked::Run(arguments)) => match life::run(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error @ SociError::Signal(number)) => {
                fail(&error.to_string());
                // As shells tell it.
                ExitCode::from(u8::try_from(128 + number).unwrap_or(1))
            }
            Err(error) => fail(&error.to_string()),
        },
        Err(GrammarError::Usage { path, text }) => {
            say(&grammar::help(&PROGRAM, &path));
            complain(&format!("Incorrect Usage: {text}\n\n"));
            fail(&text)
        }
        Err(error @ GrammarError::NoCommand(_)) => {
            complain(&format!("{error}\n"));
            ExitCode::from(NO_COMMAND)
        }
    }
}

fn fail(text: &str) -> ExitCode {
    complain(&format!("soci: {text}\n"));
    ExitCode::FAILURE
}

/// A reader who has gone (`| head`) is no error.
fn say(text: &str) {
    drop(std::io::stdout().lock().write_all(text.as_bytes()));
}

fn complain(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}
