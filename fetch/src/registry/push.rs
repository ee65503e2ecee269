//! Uploads. All of one upload goes to one host: the first that takes pushes.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, Manifest, media_type};
use tokio::time::Instant;
use url::Url;

use super::error::{Attempt, RegistryError};
use super::exchange::{Answer, Ask};
use super::redirect::follow;
use super::referrers::referrers_tag;
use super::{Repository, Scopes};
use crate::content::Content;
use crate::hosts::{Capability, Host};

/// How a blob's bytes are cut for the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// All in one request.
    Monolithic,
    /// In requests of that many bytes, so that a broken one costs little.
    Chunked {
        /// Length of each but the last; at least 1.
        chunk_len: u64,
    },
}

impl Upload {
    /// What suits a blob of a length: one request as long as repeating it is cheap.
    pub fn suiting(len: u64) -> Self {
        const CHUNK_LEN: u64 = 32 << 20;
        if len <= CHUNK_LEN { Self::Monolithic } else { Self::Chunked { chunk_len: CHUNK_LEN } }
    }
}

/// Rounds in which another writer of a referrers tag may get in our way.
const TAG_ROUNDS_MAX: usize = 4;

impl Repository {
    /// Upload a blob, unless it is there already.
    pub async fn push_blob(
        &self,
        digest: &Digest,
        content: &Content,
        upload: Upload,
    ) -> Result<(), RegistryError> {
        let (here, host) = self.for_push()?;
        if here.has_blob(digest).await? {
            return Ok(());
        }
        let limits = &self.shared.exchanger.limits;
        let (mut backoff, deadline) = (limits.backoff(), Instant::now() + limits.operation);
        for try_number in 1..=limits.tries_max {
            let started = Instant::now();
            let Err(error) = here.upload(&host, digest, content, upload).await else {
                return Ok(());
            };
            let delay = backoff.delay(try_number, error.retry_after());
            // A large upload may well take longer than an operation: its own time does not count.
            let late = Instant::now() + delay > deadline + (Instant::now() - started);
            if !error.is_transient() || late || try_number == limits.tries_max {
                return Err(error);
            }
            tracing::debug!(%error, ?delay, "upload starts again");
            tokio::time::sleep(delay).await;
        }
        unreachable!("the last try returns")
    }

    /// Take a blob over from another repository of the same registry. False if the registry won't, and
    /// the blob must be uploaded.
    pub async fn mount_blob(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let (here, host) = self.for_push()?;
        let mut ask = here.upload_ask(Method::POST, digest);
        ask.query =
            vec![("mount".to_owned(), digest.to_string()), ("from".to_owned(), from.to_owned())];
        ask.scopes.extend(Scopes::from([format!("repository:{from}:pull")]));
        let answer = self.persist(&host, &ask, None).await?;
        if answer.status == http::StatusCode::CREATED {
            return Ok(true);
        }
        // It opened an upload instead. Nobody needs that; a registry that keeps it cleans up itself.
        if let Ok(location) = location(&answer, &host) {
            let cancel = Ask { method: Method::DELETE, ..here.upload_ask(Method::DELETE, digest) };
            let _ = self.shared.exchanger.once(&host, &cancel, Some(location)).await;
        }
        Ok(false)
    }

    /// Upload a manifest or an index under a tag or its digest. Where the registry has no referrers API,
    /// the tag that stands in for it is kept up.
    pub async fn push_manifest(
        &self,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let (here, host) = self.for_push()?;
        let digest = Digest::of(&bytes);
        let answer = here.put_manifest(&host, object, media_type, bytes.clone()).await?;
        let subject = subject(media_type, &bytes);
        if let Some(subject) = subject.filter(|_| answer.header("oci-subject").is_none()) {
            here.refer_by_tag(&host, &subject.0, &subject.1).await?;
        }
        Ok(digest)
    }

    /// This repository on the one host that pushes go to.
    fn for_push(&self) -> Result<(Self, std::sync::Arc<Host>), RegistryError> {
        let able = |host: &&std::sync::Arc<Host>| host.options.capabilities.has(Capability::Push);
        let host = self.hosts.iter().find(able).cloned().ok_or_else(|| RegistryError::Refused {
            at: Attempt { what: format!("push to {}", self.name), host: "any host".to_owned() },
            reason: "no configured host has the capability push".to_owned(),
        })?;
        Ok((Self { hosts: [host.clone()].into(), ..self.clone() }, host))
    }

    async fn put_manifest(
        &self,
        host: &Host,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Answer, RegistryError> {
        let mut ask = self.ask(Capability::Push, Method::PUT, &format!("manifests/{object}"));
        ask.what = format!("push of manifest {object} to {}", self.name);
        let value = HeaderValue::from_str(media_type).map_err(|_| RegistryError::Refused {
            at: Attempt { what: ask.what.clone(), host: host.name() },
            reason: format!("media type {media_type:?} fits in no header"),
        })?;
        ask.headers.insert(header::CONTENT_TYPE, value);
        ask.content = Content::Bytes(bytes);
        self.persist(host, &ask, None).await
    }

    async fn refer_by_tag(
        &self,
        host: &Host,
        subject: &Digest,
        referrer: &Descriptor,
    ) -> Result<(), RegistryError> {
        let tag = referrers_tag(subject);
        for _ in 0..TAG_ROUNDS_MAX {
            let mut index = self.referrers_by_tag(subject).await?.unwrap_or(Index {
                schema_version: 2,
                media_type: media_type::INDEX.to_owned(),
                artifact_type: String::new(),
                manifests: Vec::new(),
                subject: None,
                annotations: Default::default(),
                other: Default::default(),
            });
            if index.manifests.iter().any(|it| it.digest == referrer.digest) {
                return Ok(());
            }
            index.manifests.push(referrer.clone());
            let bytes = Bytes::from(index.to_canonical());
            self.put_manifest(host, &tag, media_type::INDEX, bytes).await?;
            // The next round reads it back: another writer may have replaced it in between.
        }
        Err(RegistryError::Refused {
            at: Attempt { what: format!("tag {tag} of {}", self.name), host: host.name() },
            reason: format!("others changed it in each of {TAG_ROUNDS_MAX} rounds"),
        })
    }

    fn upload_ask(&self, method: Method, digest: &Digest) -> Ask {
        let mut ask = self.ask(Capability::Push, method, "blobs/uploads/");
        ask.what = format!("push of blob {digest} to {}", self.name);
        ask
    }

    async fn persist(
        &self,
        host: &Host,
        ask: &Ask,
        url: Option<&Url>,
    ) -> Result<Answer, RegistryError> {
        let exchanger = &self.shared.exchanger;
        let deadline = Instant::now() + exchanger.limits.operation;
        exchanger.persist(host, ask, url, exchanger.limits.tries_max, deadline, Ok).await
    }

    async fn upload(
        &self,
        host: &Host,
        digest: &Digest,
        content: &Content,
        upload: Upload,
    ) -> Result<(), RegistryError> {
        let exchanger = &self.shared.exchanger;
        let opened = self.persist(host, &self.upload_ask(Method::POST, digest), None).await?;
        let mut session = location(&opened, host)?;
        let mut last = content.clone();
        if let Upload::Chunked { chunk_len } = upload {
            session = self.send_chunks(host, digest, content, chunk_len.max(1), session).await?;
            last = Content::empty();
        }
        session.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut put = self.upload_ask(Method::PUT, digest);
        put.content = last;
        put.headers.insert(header::CONTENT_TYPE, OCTETS);
        exchanger.once(host, &put, Some(session)).await.map(drop)
    }

    /// Send all of it in chunks, going on where the server stands after a chunk that failed.
    async fn send_chunks(
        &self,
        host: &Host,
        digest: &Digest,
        content: &Content,
        chunk_len: u64,
        mut session: Url,
    ) -> Result<Url, RegistryError> {
        let exchanger = &self.shared.exchanger;
        let mut backoff = exchanger.limits.backoff();
        let (mut at, mut failures) = (0, 0);
        while at < content.len() {
            let mut patch = self.upload_ask(Method::PATCH, digest);
            patch.content = content.slice(at, at.saturating_add(chunk_len));
            let end = at + patch.content.len();
            patch.headers.insert(header::CONTENT_TYPE, OCTETS);
            let range = HeaderValue::from_str(&format!("{at}-{}", end - 1));
            patch.headers.extend(range.ok().map(|range| (header::CONTENT_RANGE, range)));
            match exchanger.once(host, &patch, Some(session.clone())).await {
                Ok(answer) => {
                    session = location(&answer, host)?;
                    at = received(&answer)
                        .filter(|&count| count > 0)
                        .unwrap_or(end)
                        .min(content.len());
                    failures = if at == end { 0 } else { failures + 1 };
                }
                Err(error) => {
                    failures += 1;
                    let out_of_step = matches!(&error,
                        RegistryError::Unexpected { status, .. } if status.as_u16() == 416);
                    if !(error.is_transient() || out_of_step) {
                        return Err(error);
                    }
                    tokio::time::sleep(backoff.delay(failures, error.retry_after())).await;
                    let status = self.upload_ask(Method::GET, digest);
                    let answer = self.persist(host, &status, Some(&session)).await?;
                    session = location(&answer, host).unwrap_or(session);
                    at = received(&answer).unwrap_or(0).min(content.len());
                }
            }
            if failures >= exchanger.limits.tries_max {
                return Err(RegistryError::Unreachable {
                    at: Attempt { what: patch.what, host: host.name() },
                    reason: format!("{failures} chunks in a row failed, the last at byte {at}"),
                });
            }
        }
        Ok(session)
    }
}

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Where the upload goes on.
fn location(answer: &Answer, host: &Host) -> Result<Url, RegistryError> {
    let refuse = |reason: String| RegistryError::Refused { at: answer.at.clone(), reason };
    let text =
        answer.header("location").ok_or_else(|| refuse("no Location for the upload".into()))?;
    follow(&answer.url, text, host.options.base.scheme() == "http").map_err(refuse)
}

/// How many bytes the server has: its `Range` header is `0-<last>`. `0-0` may mean none or one; sending
/// one byte again is right in both cases.
fn received(answer: &Answer) -> Option<u64> {
    let text = answer.header("range")?;
    let (first, last) = text.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.parse().ok()?;
    (first == "0").then(|| if last == 0 { 0 } else { last.saturating_add(1) })
}

/// A manifest's subject, and the manifest as the subject's list of referrers shows it.
pub(crate) fn subject(media_type: &str, bytes: &[u8]) -> Option<(Digest, Descriptor)> {
    let mut referrer = Descriptor::of(media_type, bytes);
    let subject = if media_type::is_index(media_type) {
        let index = Index::parse(bytes).ok()?;
        referrer.artifact_type = index.artifact_type;
        referrer.annotations = index.annotations;
        index.subject
    } else {
        let manifest = Manifest::parse(bytes).ok()?;
        referrer.artifact_type = match manifest.artifact_type.is_empty() {
            true => manifest.config.media_type,
            false => manifest.artifact_type,
        };
        referrer.annotations = manifest.annotations;
        manifest.subject
    };
    Some((subject?.digest, referrer))
}
