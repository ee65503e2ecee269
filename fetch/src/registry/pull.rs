//! Manifests and small blobs, whole in memory and checked.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use spanfs_layer::{Digest, Hasher};

use super::Repository;
use super::error::{Attempt, RegistryError};
use super::exchange::{Answer, Ask};
use crate::Class;
use crate::hosts::Capability;

/// The specification asks for at least 4 MiB; containerd reads 8.
pub(crate) const MANIFEST_LEN_MAX: u64 = 8 << 20;
/// Everything that a tag may mean.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
const DIGEST_HEADER: &str = "docker-content-digest";

/// A manifest or an index, as its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawManifest {
    /// Exactly as the registry has them.
    pub bytes: Bytes,
    /// From the body where it says so, else from the answer's Content-Type.
    pub media_type: String,
    /// Of `bytes`; checked if it was asked for.
    pub digest: Digest,
}

/// What a document says of itself.
#[derive(serde::Deserialize)]
struct Head {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
}

impl RawManifest {
    /// One that came without a word on its media type.
    pub(crate) fn named(bytes: Bytes, digest: Digest) -> Self {
        let head = serde_json::from_slice(&bytes).ok().and_then(|head: Head| head.media_type);
        Self { bytes, media_type: head.unwrap_or_default(), digest }
    }
}

impl Repository {
    /// Get a manifest or an index, by a tag or by a digest. Its bytes match the digest.
    pub async fn manifest(&self, object: &str) -> Result<RawManifest, RegistryError> {
        let wanted = object.parse::<Digest>().ok();
        let ask = self.manifest_ask(Method::GET, object, wanted.is_some());
        let exchanger = &self.shared.exchanger;
        exchanger.over_hosts(&self.hosts, &ask, |answer| checked(answer, wanted)).await
    }

    /// Digest of a manifest that is there; `None` if there is none. Asks by HEAD, and by GET where
    /// a registry refuses that.
    pub async fn manifest_digest(&self, object: &str) -> Result<Option<Digest>, RegistryError> {
        let wanted = object.parse::<Digest>().ok();
        let ask = self.manifest_ask(Method::HEAD, object, wanted.is_some());
        let exchanger = &self.shared.exchanger;
        let told = |answer: Answer| {
            Ok(answer.header(DIGEST_HEADER).and_then(|text| text.parse::<Digest>().ok()))
        };
        let found = match exchanger.over_hosts(&self.hosts, &ask, told).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(RegistryError::Unexpected { .. }) => {
                self.manifest(object).await.map(|manifest| manifest.digest)
            }
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.class() == Class::Gone => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Get a small blob, whole. It is at most `len_max` bytes long and matches its digest.
    pub async fn blob_bytes(&self, digest: &Digest, len_max: u64) -> Result<Bytes, RegistryError> {
        let path = format!("blobs/{digest}");
        let mut ask = self.ask(Capability::Pull, Method::GET, &path);
        ask.what = format!("blob {digest} of {}", self.name);
        ask.answer_len_max = len_max;
        let exchanger = &self.shared.exchanger;
        exchanger
            .over_hosts(&self.hosts, &ask, |answer| {
                check_digest(&answer.at, &answer.body, digest)?;
                Ok(answer.body)
            })
            .await
    }

    /// Whether the registry has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let ask = self.ask(Capability::Pull, Method::HEAD, &format!("blobs/{digest}"));
        match self.shared.exchanger.over_hosts(&self.hosts, &ask, |_| Ok(())).await {
            Ok(()) => Ok(true),
            Err(error) if error.class() == Class::Gone => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn manifest_ask(&self, method: Method, object: &str, by_digest: bool) -> Ask {
        let capability = if by_digest { Capability::Pull } else { Capability::Resolve };
        let mut ask = self.ask(capability, method, &format!("manifests/{object}"));
        ask.what = format!("manifest {object} of {}", self.name);
        ask.headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        ask.answer_len_max = MANIFEST_LEN_MAX;
        ask
    }
}

/// Fail unless bytes have a digest.
pub(crate) fn check_digest(
    at: &Attempt,
    bytes: &[u8],
    wanted: &Digest,
) -> Result<(), RegistryError> {
    let mut hasher = Hasher::new(wanted.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    match found == *wanted {
        true => Ok(()),
        false => Err(RegistryError::Corrupt {
            at: at.clone(),
            expected: wanted.to_string(),
            found: format!("{} bytes of {found}", bytes.len()),
        }),
    }
}

fn checked(answer: Answer, wanted: Option<Digest>) -> Result<RawManifest, RegistryError> {
    // A registry's own word on a tag's digest is checked too: it tells damage on the way.
    let told = answer.header(DIGEST_HEADER).and_then(|text| text.parse::<Digest>().ok());
    let digest = wanted.or(told).unwrap_or_else(|| Digest::of(&answer.body));
    check_digest(&answer.at, &answer.body, &digest)?;
    let corrupt = |expected: &str, found: &str| RegistryError::Corrupt {
        at: answer.at.clone(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    let head: Head = serde_json::from_slice(&answer.body)
        .map_err(|error| corrupt("a JSON manifest", &error.to_string()))?;
    let told = answer.header("content-type").unwrap_or_default();
    let told = told.split(';').next().unwrap_or_default().trim().to_owned();
    // Some servers label everything as plain JSON or bytes: that is no contradiction.
    let generic = matches!(
        told.as_str(),
        "" | "application/json" | "application/octet-stream" | "text/plain"
    );
    let media_type = match head.media_type {
        Some(own) if generic || own == told => own,
        Some(own) => return Err(corrupt(&format!("media type {own}, as its body says"), &told)),
        None => told,
    };
    Ok(RawManifest { bytes: answer.body, media_type, digest })
}
