//! Image configs, as far as mounting and starting an image needs them.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;

use super::{OciError, Platform, null_is_empty, parse};
use crate::Digest;

/// Config of an image.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ImageConfig {
    /// Machine that the image is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// How its container is started.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: ContainerConfig,
    #[serde(default, deserialize_with = "null_is_empty")]
    rootfs: RootFs,
}

/// How a container is started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// Program and first arguments.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=VALUE` texts.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// Directory to start in.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// `user[:group]`, by name or number.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Read a config.
    pub fn parse(json: &[u8]) -> Result<Self, OciError> {
        parse("image config", json)
    }

    /// Digests of the layers' uncompressed tars, lowest first.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    /// The whole command line: entrypoint, then arguments.
    pub fn command(&self) -> impl Iterator<Item = &str> {
        self.config.entrypoint.iter().chain(&self.config.cmd).map(String::as_str)
    }
}
