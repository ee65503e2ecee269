//! Platforms: which machine an image is for.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::Deserialize;

use super::null_is_empty;

/// Operating system and processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Processor, by Go's names.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub architecture: String,
    /// Operating system, by Go's names.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub os: String,
    /// Version of Windows.
    #[serde(rename = "os.version", default, deserialize_with = "null_is_empty")]
    pub os_version: String,
    /// Features of Windows.
    #[serde(rename = "os.features", default, deserialize_with = "null_is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub variant: String,
}

/// Text that names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("platform {text:?} is not OS/ARCHITECTURE[/VARIANT]")]
pub struct PlatformError {
    text: String,
}

impl Platform {
    /// Platform of the given names, normalised.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let platform = Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Self::default()
        };
        platform.normalized()
    }

    /// The machine that this program was built for, running Linux.
    pub fn host() -> Self {
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else if cfg!(target_arch = "aarch64") {
            "arm64"
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            "ppc64le"
        } else if cfg!(target_arch = "riscv64") {
            "riscv64"
        } else if cfg!(target_arch = "s390x") {
            "s390x"
        } else if cfg!(target_arch = "x86") {
            "386"
        } else {
            "arm"
        };
        Self::new("linux", architecture, "")
    }

    /// The same platform by its usual names: `x86_64` is `amd64`, `arm64/v8` is `arm64`, `arm` is
    /// `arm/v7`.
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_string(),
            os => os.to_string(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "" | "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9") => ("arm64", "v9"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            names => names,
        };
        Self {
            os,
            architecture: architecture.into(),
            variant: variant.into(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    /// True if both mean the same machine.
    pub fn matches(&self, other: &Self) -> bool {
        let names = |platform: &Self| {
            let Self { os, architecture, variant, .. } = platform.normalized();
            (os, architecture, variant)
        };
        names(self) == names(other)
    }

    /// How well an image for `image` suits a machine that is `self`; lower is better, `None` not at
    /// all. Older variants of the processor run, too, and at last those of 32 bits.
    pub fn preference(&self, image: &Self) -> Option<u32> {
        const OTHER_WIDTH: u32 = 100;
        let (machine, image) = (self.normalized(), image.normalized());
        if machine.os != image.os {
            return None;
        }
        let level = |platform: &Self| {
            let digits = platform.variant.strip_prefix('v')?;
            digits.split('.').next()?.parse::<u32>().ok()
        };
        match (machine.architecture.as_str(), image.architecture.as_str()) {
            (machine_arch, image_arch) if machine_arch == image_arch => {
                if machine.variant == image.variant {
                    return Some(0);
                }
                let base = match machine_arch {
                    "amd64" => 1,
                    "arm64" => 8,
                    _ => return level(&machine)?.checked_sub(level(&image)?),
                };
                let level = |platform: &Self| level(platform).unwrap_or(base);
                level(&machine).checked_sub(level(&image))
            }
            ("amd64", "386") => Some(OTHER_WIDTH),
            ("arm64", "arm") => Some(OTHER_WIDTH + 8_u32.checked_sub(level(&image)?)?),
            _ => None,
        }
    }

    /// True for the mark that build tools put on attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Read `OS/ARCHITECTURE[/VARIANT]`, or an architecture alone, which then is Linux's.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let fail = || PlatformError { text: text.into() };
        let valid = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
            !part.is_empty() && part.bytes().all(allowed)
        };
        if !text.split('/').all(valid) {
            return Err(fail());
        }
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("linux"), None, ..) => Ok(Self::host()),
            (Some(architecture), None, ..) => Ok(Self::new("linux", architecture, "")),
            (Some(os), Some(architecture), variant, None) => {
                Ok(Self::new(os, architecture, variant.unwrap_or_default()))
            }
            _ => Err(fail()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}
