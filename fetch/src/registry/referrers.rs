//! What refers to a manifest: the API of distribution 1.1, else the tag that stands in for it.

use http::{HeaderValue, Method, header};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, media_type};
use url::Url;

use super::Repository;
use super::error::RegistryError;
use super::exchange::Answer;
use super::pull::MANIFEST_LEN_MAX;
use super::redirect::{follow, same_origin};
use crate::Class;
use crate::hosts::Capability;

/// Pages and descriptors beyond these are a server gone wild.
const PAGES_MAX: usize = 256;
const DESCRIPTORS_MAX: usize = 65_536;

impl Repository {
    /// Descriptors of the manifests whose subject is `digest`, of one artifact type or of all. None
    /// where the registry knows nothing of it.
    pub async fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let found = match self.referrers_by_api(digest, artifact_type).await {
            Err(error) if is_unsupported(&error) => {
                tracing::debug!(%error, "no referrers API, trying its tag");
                self.referrers_by_tag(digest).await?.map(|index| index.manifests)
            }
            other => Some(other?),
        };
        let mut found = found.unwrap_or_default();
        // Registries may ignore the filter, so it is applied here in any case.
        found.retain(|it| artifact_type.is_none_or(|wanted| it.artifact_type == wanted));
        Ok(found)
    }

    async fn referrers_by_api(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut ask = self.ask(Capability::Referrers, Method::GET, &format!("referrers/{digest}"));
        ask.what = format!("referrers of {digest} in {}", self.name);
        ask.headers.insert(header::ACCEPT, HeaderValue::from_static(media_type::INDEX));
        ask.answer_len_max = MANIFEST_LEN_MAX;
        ask.query.extend(artifact_type.map(|it| ("artifactType".to_owned(), it.to_owned())));
        let exchanger = &self.shared.exchanger;
        let mut answer = exchanger.over_hosts(&self.hosts, &ask, page).await?;
        let mut found = std::mem::take(&mut answer.manifests);
        for _ in 0..PAGES_MAX {
            let Some(next) = answer.next.take() else { return Ok(found) };
            let own = |url: &Url| {
                self.hosts.iter().find(|host| same_origin(url, &host.options.base)).cloned()
            };
            let refuse = |reason: String| RegistryError::Refused { at: answer.at.clone(), reason };
            let url = follow(&answer.url, &next, false).map_err(refuse)?;
            let host = own(&url).ok_or_else(|| {
                refuse("its next page is on a host that is not its own".to_owned())
            })?;
            let deadline = tokio::time::Instant::now() + exchanger.limits.operation;
            let tries = exchanger.limits.tries_max;
            answer = exchanger.persist(&host, &ask, Some(&url), tries, deadline, page).await?;
            found.append(&mut answer.manifests);
            if found.len() > DESCRIPTORS_MAX {
                return Err(refuse_more(&answer));
            }
        }
        Err(refuse_more(&answer))
    }

    /// The index under the tag that stands in for the API; `None` if there is no such tag.
    pub(super) async fn referrers_by_tag(
        &self,
        digest: &Digest,
    ) -> Result<Option<Index>, RegistryError> {
        let tag = referrers_tag(digest);
        let raw = match self.manifest(&tag).await {
            Err(error) if error.class() == Class::Gone => return Ok(None),
            other => other?,
        };
        let wrong = |found: String| RegistryError::Corrupt {
            at: super::Attempt { what: format!("manifest {tag}"), host: self.name.clone() },
            expected: "an index of referrers".to_owned(),
            found,
        };
        if !media_type::is_index(&raw.media_type) {
            return Err(wrong(raw.media_type));
        }
        Index::parse(&raw.bytes).map(Some).map_err(|error| wrong(error.to_string()))
    }
}

/// The tag that stands in for the referrers API: `sha256-<hex>`.
pub(super) fn referrers_tag(digest: &Digest) -> String {
    let hex = digest.hex().to_string();
    let short: String = hex.chars().take(64).collect();
    format!("{}-{short}", digest.algorithm().name())
}

/// One answer of the API.
struct Page {
    at: super::Attempt,
    url: Url,
    manifests: Vec<Descriptor>,
    /// Where the next one is, relative to `url`.
    next: Option<String>,
}

fn page(answer: Answer) -> Result<Page, RegistryError> {
    let next = answer.header("link").and_then(next_link);
    let index = Index::parse(&answer.body).map_err(|error| RegistryError::Unexpected {
        at: answer.at.clone(),
        status: answer.status,
        detail: format!(" ({error})"),
    })?;
    Ok(Page { at: answer.at, url: answer.url, manifests: index.manifests, next })
}

/// Target of the link with `rel="next"` (RFC 8288).
fn next_link(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
        };
        parameters.split(';').any(is_next).then(|| target.to_owned())
    })
}

fn refuse_more(page: &Page) -> RegistryError {
    RegistryError::Refused {
        at: page.at.clone(),
        reason: format!("more than {PAGES_MAX} pages or {DESCRIPTORS_MAX} referrers"),
    }
}

/// True for the answers by which registries say that they don't know the API.
fn is_unsupported(error: &RegistryError) -> bool {
    match error {
        RegistryError::NotFound { .. } | RegistryError::Unexpected { .. } => true,
        RegistryError::AllHosts(errors) => errors.last().is_some_and(is_unsupported),
        _ => false,
    }
}
