//! Settings: the peer's `config.toml`, key by key, and a table `[spanfs]` of ours.
//!
//! [`RawConfig`] is what the file says, [`Settings`] what that means. Reading tells all faults at once, and
//! ignores nothing in silence: keys that mean nothing here are warned of.

mod check;
mod dump;
mod raw;
mod read;
pub mod reload;
mod resolve;
mod settings;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use dump::dump;
pub use raw::RawConfig;
pub use settings::{
    BackgroundFetch, ContentStore, CredentialProviders, DecompressProgram, FrontChoice, Listen,
    Mirror, ParallelPull, PullModes, Retry, Settings,
};

/// Settings files are a few kilobytes.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1; none when it is about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: String,
}

/// Something that the administrator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Counted from 1.
    pub line: usize,
    /// What was found.
    pub text: String,
}

/// Faults of one file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Fault { line, problem }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            match line {
                Some(line) => write!(f, "line {line}: {problem}")?,
                None => f.write_str(problem)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("failed to open config file {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says what can't be.
    #[error("failed to load config file {path:?}")]
    Load {
        /// The file.
        path: PathBuf,
        /// All that is wrong.
        #[source]
        source: Faults,
    },
}

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Its settings as they stand.
    pub raw: RawConfig,
    /// What they mean.
    pub settings: Settings,
    /// Keys without effect.
    pub warnings: Vec<Finding>,
}

impl Default for Config {
    /// The settings of an empty file.
    fn default() -> Self {
        Self::parse("").expect("nothing said is nothing wrong")
    }
}

impl Config {
    /// The settings of a text.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let read::Read { mut raw, mut faults, warnings } = read::read(text);
        raw.fill();
        let settings = match Settings::resolve(&raw) {
            Ok(settings) if faults.is_empty() => settings,
            Ok(_) => return Err(Faults(faults)),
            Err(Faults(more)) => {
                faults.extend(more);
                return Err(Faults(faults));
            }
        };
        Ok(Self { raw, settings, warnings })
    }

    /// The settings of a file; all defaults if it need not be there and is not.
    pub fn read(path: &Path, is_required: bool) -> Result<Self, ConfigError> {
        let text = match text_of(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_required => String::new(),
            text => text.map_err(|source| ConfigError::Open { path: path.to_owned(), source })?,
        };
        Self::parse(&text).map_err(|source| ConfigError::Load { path: path.to_owned(), source })
    }
}

fn text_of(path: &Path) -> io::Result<String> {
    let len = std::fs::metadata(path)?.len();
    if len > FILE_LEN_MAX {
        let problem = format!("{len} bytes are too many for settings, at most {FILE_LEN_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    std::fs::read_to_string(path)
}
