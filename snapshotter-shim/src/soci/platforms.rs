//! Which platforms of an image a command works on.

use spanfs_layer::oci::Platform;

use super::SociError;
use super::grammar::Arguments;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// All that the image has.
    All,
    /// These, without repetition.
    These(Vec<Platform>),
    /// Nothing was said.
    Default,
}

impl Platforms {
    /// Of `--all-platforms` and `--platform`.
    pub fn of(arguments: &Arguments) -> Result<Self, SociError> {
        let mut these: Vec<Platform> = Vec::new();
        for text in arguments.texts("platform") {
            let platform = parse(text)?;
            if !these.iter().any(|known| known.matches(&platform)) {
                these.push(platform);
            }
        }
        Ok(match these.is_empty() {
            _ if arguments.is_set("all-platforms") => Self::All,
            true => Self::Default,
            false => Self::These(these),
        })
    }
}

/// Read a platform.
pub fn parse(text: &str) -> Result<Platform, SociError> {
    text.parse().map_err(|_| {
        SociError::said(format!(
            "could not parse platform {text}: {text:?}: cannot parse platform specifier: invalid \
             argument"
        ))
    })
}
