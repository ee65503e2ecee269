//! Media types of documents and layers.

/// Media types of documents.
pub mod media_type {
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's index.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

    /// True for a manifest of either family.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, MANIFEST | DOCKER_MANIFEST)
    }

    /// True for an index of either family.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, INDEX | DOCKER_INDEX)
    }
}

const DOCKER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN_TAR: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_NONDISTRIBUTABLE_TAR: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
const EROFS: &str = "application/vnd.erofs.layer.v1";

/// Compression that a layer's media type promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    Uncompressed,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// Docker's plain type, under which gzip was pushed as well: look at the first bytes.
    Unknown,
}

/// What a media type says of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// A tar.
    Tar {
        /// Its compression.
        compression: Compression,
        /// False for layers that may have to come from [`super::Descriptor::urls`].
        distributable: bool,
    },
    /// Encrypted in whatever form: never lazy.
    Encrypted,
    /// An EROFS image.
    Erofs,
    /// No layer that we know.
    Other,
}

impl LayerType {
    /// Look at a media type.
    pub fn of(media_type: &str) -> Self {
        let mut parts = media_type.split('+');
        let base = parts.next().unwrap_or_default();
        let suffixes = || media_type.split('+').skip(1);
        let is_layer = [DOCKER_TAR, DOCKER_FOREIGN_TAR, OCI_TAR, OCI_NONDISTRIBUTABLE_TAR]
            .iter()
            .any(|known| base.starts_with(known));
        if is_layer && suffixes().any(|suffix| suffix == "encrypted") {
            return Self::Encrypted;
        }
        let tar = |compression, distributable| Self::Tar { compression, distributable };
        let docker = |name| base.strip_prefix(name).filter(|_| suffixes().next().is_none());
        let docker_compression = |rest| match rest {
            "" => Some(Compression::Unknown),
            ".gzip" => Some(Compression::Gzip),
            ".zstd" => Some(Compression::Zstd),
            _ => None,
        };
        if let Some(compression) = docker(DOCKER_TAR).and_then(docker_compression) {
            return tar(compression, true);
        }
        if let Some(compression) = docker(DOCKER_FOREIGN_TAR).and_then(docker_compression) {
            return tar(compression, false);
        }
        let compression = match (suffixes().next(), suffixes().nth(1)) {
            (None, _) => Some(Compression::Uncompressed),
            (Some("gzip"), None) => Some(Compression::Gzip),
            (Some("zstd"), None) => Some(Compression::Zstd),
            _ => None,
        };
        match (base, compression) {
            (OCI_TAR, Some(compression)) => tar(compression, true),
            (OCI_NONDISTRIBUTABLE_TAR, Some(compression)) => tar(compression, false),
            (EROFS, _) => Self::Erofs,
            _ => Self::Other,
        }
    }
}
