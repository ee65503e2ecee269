//! `soci push`: the index of an image to the image's registry.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use spanfs_fetch::{
    Content, CredentialSource, Login, ProxyOptions, Reference, Registry, RegistryOptions,
    Repository, Secret, TlsOptions, Upload,
};
use spanfs_layer::oci::{Descriptor, media_type};
use spanfs_layer::soci::{SociIndex, Version};
use spanfs_layer::{Digest, Hasher};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::SociError;
use super::super::artifacts::{Artifact, ArtifactKind};
use super::super::grammar::Arguments;
use super::super::image::{Image, PlatformImage};
use super::super::output::Output;
use super::super::platforms::Platforms;
use super::super::session::Session;
use super::super::store::{DOCUMENT_LEN_MAX, Store};

/// What is done where the registry has an index already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Warn,
    Skip,
    Allow,
}

impl Existing {
    fn of(text: &str) -> Result<Self, SociError> {
        match text {
            "warn" => Ok(Self::Warn),
            "skip" => Ok(Self::Skip),
            "allow" => Ok(Self::Allow),
            other => Err(SociError::said(format!(
                "unexpected value for flag existing-index: {other}, expected types [warn skip allow]"
            ))),
        }
    }
}

const UPLOADS_DEFAULT: i64 = 3;
/// Uploads that a registry takes from one client without slowing down.
const UPLOADS_MAX: usize = 64;

pub(in crate::soci) async fn push(session: &Session) -> Result<(), SociError> {
    let arguments = &session.arguments;
    let [reference] = arguments.positionals();
    let reference = reference.filter(|it| !it.is_empty());
    let reference =
        reference.ok_or_else(|| SociError::said("please provide an image reference to push"))?;
    let existing = Existing::of(arguments.text("existing-index").unwrap_or_default())?;
    let client = session.client().await?;
    let record = client.images().get(reference).await?;
    let images = Store::Containerd(client.clone());
    let image = Image::read(&images, &record.target).await?;
    let platforms = image.select(&images, &Platforms::of(arguments)?).await?;
    let records = session.records().await?.all()?;
    // All are looked up before anything is pushed.
    let mut found: Vec<(Digest, PlatformImage)> = Vec::new();
    for platform in platforms {
        found.push((index_of(session, &records, &platform)?, platform));
    }
    let uploads = match arguments.int("max-concurrent-uploads") {
        0 => UPLOADS_DEFAULT,
        count => count,
    };
    let uploads = usize::try_from(uploads).unwrap_or(1).clamp(1, UPLOADS_MAX);
    let pusher = Pusher {
        repository: repository(arguments, reference)?,
        artifacts: session.store_with(&client)?,
        images,
        gate: Arc::new(Semaphore::new(uploads)),
        output: session.output.clone(),
        quiet: arguments.is_set("quiet"),
    };
    for (index, platform) in &found {
        if pusher.is_wanted(existing, &platform.descriptor.digest).await? {
            pusher.push(index, platform).await?;
        }
    }
    Ok(())
}

/// The latest index of version 1 of an image.
fn index_of(
    session: &Session,
    records: &[(Digest, Artifact)],
    platform: &PlatformImage,
) -> Result<Digest, SociError> {
    let manifest = platform.descriptor.digest.to_string();
    let of_image = |record: &Artifact| record.kind == ArtifactKind::Index && record.of == manifest;
    let is = |record: &Artifact, version: Version| record.artifact_type == version.artifact_type();
    let indexes = || records.iter().filter(|(_, record)| of_image(record));
    if indexes().any(|(_, record)| is(record, Version::V2)) {
        session.output.line(
            "[WARN] Skippping SOCI index manifest v2. You should push the whole image with higher \
             level tools like finch or nerdctl.",
        );
    }
    let latest = indexes()
        .filter(|(_, record)| is(record, Version::V1))
        .max_by_key(|(_, record)| record.created);
    latest.map(|(digest, _)| *digest).ok_or_else(|| {
        let platform = platform.platform.normalized();
        SociError::said(format!(
            "could not find any soci index manifest v1 to push for platform {platform}"
        ))
    })
}

/// The repository that a reference names, as the flags say how to speak to it.
pub(super) fn repository(arguments: &Arguments, name: &str) -> Result<Repository, SociError> {
    let reference: Reference =
        name.parse().map_err(|error| SociError::said(format!("{name}: {error}")))?;
    let registry = Registry::new(options(arguments))
        .map_err(|error| SociError::said(format!("preparing to speak to {name}: {error}")))?;
    Ok(registry.repository(&reference)?)
}

pub(super) fn options(arguments: &Arguments) -> RegistryOptions {
    let text = |name| arguments.text(name).filter(|it| !it.is_empty());
    let path = |name| text(name).map(PathBuf::from);
    let env = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
    let either = |name: &str| env(name).or_else(|| env(&name.to_lowercase()));
    let docker = env("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".docker")));
    let docker = docker.map(|path| CredentialSource::DockerConfig(path.join("config.json")));
    let client_pair = path("tlscert").map(|cert| (cert.clone(), path("tlskey").unwrap_or(cert)));
    RegistryOptions {
        credentials: login(arguments).into_iter().chain(docker).collect(),
        hosts_dirs: arguments.texts("hosts-dir").iter().map(PathBuf::from).collect(),
        plain_http: arguments.is_set("plain-http"),
        tls: TlsOptions {
            ca_files: path("tlscacert").into_iter().collect(),
            client_pairs: client_pair.into_iter().collect(),
            skip_verify: arguments.is_set("skip-verify"),
        },
        proxies: ProxyOptions {
            http: either("HTTP_PROXY").map(Secret::new),
            https: either("HTTPS_PROXY").map(Secret::new),
            no_proxy: either("NO_PROXY"),
        },
        ..RegistryOptions::default()
    }
}

fn login(arguments: &Arguments) -> Option<CredentialSource> {
    let text = |name| arguments.text(name).filter(|it| !it.is_empty());
    let (login, name) = match (text("refresh"), text("user")) {
        (Some(token), _) => (Login::IdentityToken(Secret::new(token)), "--refresh"),
        (None, Some(user)) => {
            let (username, password) = user.split_once(':').unwrap_or((user, ""));
            let (username, password) = (username.to_owned(), Secret::new(password));
            (Login::Password { username, password }, "--user")
        }
        (None, None) => return None,
    };
    Some(CredentialSource::Given { host: None, login, name: name.to_owned() })
}

/// Everything that pushing one graph needs. Cheap to clone.
#[derive(Clone)]
struct Pusher {
    repository: Repository,
    artifacts: Store,
    images: Store,
    gate: Arc<Semaphore>,
    output: Output,
    quiet: bool,
}

/// What a graph consists of: blobs first, then manifests, each after what it names.
struct Node {
    descriptor: Descriptor,
    store: Store,
}

impl Pusher {
    fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            self.output.line(text);
        }
    }

    /// Whether the index of `manifest` is to be pushed in sight of those that are there.
    async fn is_wanted(&self, existing: Existing, manifest: &Digest) -> Result<bool, SociError> {
        if existing == Existing::Allow {
            return Ok(true);
        }
        self.say("checking if a soci index already exists in remote repository...");
        let found = self.repository.referrers(manifest, Some(Version::V1.artifact_type())).await;
        let attempt = "failed to fetch list of referrers";
        let found = found.map_err(|source| SociError::Registry { attempt, source })?;
        let text = match found.as_slice() {
            [] => return Ok(true),
            [one] => format!("soci index found in remote repository with digest: {}", one.digest),
            _ => "multiple soci indices found in remote repository".to_owned(),
        };
        if existing == Existing::Warn {
            self.output.line(format_args!("[WARN] {text}: pushing index anyway"));
            return Ok(true);
        }
        let skipped = "skipping pushing artifacts for image manifest";
        self.say(format_args!("{text}: {skipped}: {manifest}"));
        Ok(false)
    }

    async fn push(&self, digest: &Digest, platform: &PlatformImage) -> Result<(), SociError> {
        if self.quiet {
            self.output.line(digest);
        } else {
            self.output.line(format_args!("pushing soci index with digest: {digest}"));
        }
        if self.has_manifest(digest).await? {
            self.say(format_args!("skipped artifact with digest: {digest}"));
            return Ok(());
        }
        let bytes = self.artifacts.bytes(digest, DOCUMENT_LEN_MAX).await?;
        let index = SociIndex::parse(&bytes)
            .map_err(|error| SociError::said(format!("index {digest}: {error}")))?;
        let mut blobs: Vec<Node> = std::iter::once(&index.manifest.config)
            .chain(&index.manifest.layers)
            .map(|it| Node { descriptor: it.clone(), store: self.artifacts.clone() })
            .collect();
        // An index is nothing without its subject.
        let image = &platform.descriptor;
        let image_is_there = self.has_manifest(&image.digest).await?;
        if image_is_there {
            self.say(format_args!("skipped artifact with digest: {}", image.digest));
        } else {
            let own = std::iter::once(&platform.manifest.config).chain(&platform.manifest.layers);
            let distributable = own.filter(|it| it.urls.is_empty());
            blobs.extend(
                distributable.map(|it| Node { descriptor: it.clone(), store: self.images.clone() }),
            );
        }
        self.push_blobs(blobs).await?;
        if !image_is_there {
            self.push_manifest(&image.media_type, &image.digest, &platform.bytes).await?;
        }
        self.push_manifest(media_type::MANIFEST, digest, &bytes).await
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, SociError> {
        let found = self.repository.manifest_digest(&digest.to_string()).await.map_err(failed)?;
        Ok(found.is_some())
    }

    async fn push_blobs(&self, blobs: Vec<Node>) -> Result<(), SociError> {
        let mut known = HashSet::new();
        let mut tasks = JoinSet::new();
        for node in blobs.into_iter().filter(|it| known.insert(it.descriptor.digest)) {
            let pusher = self.clone();
            tasks.spawn(async move {
                let _permit = pusher.gate.acquire().await;
                pusher.push_blob(&node).await
            });
        }
        // The first error ends the others.
        while let Some(done) = tasks.join_next().await {
            done.unwrap_or_else(|error| match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("nobody cancels an upload"),
            })?;
        }
        Ok(())
    }

    async fn push_blob(&self, node: &Node) -> Result<(), SociError> {
        let digest = node.descriptor.digest;
        if self.repository.has_blob(&digest).await.map_err(failed)? {
            self.say(format_args!("skipped artifact with digest: {digest}"));
            return Ok(());
        }
        self.say(format_args!("pushing artifact with digest: {digest}"));
        let content = content(node).await?;
        let upload = Upload::suiting(content.len());
        self.repository.push_blob(&digest, &content, upload).await.map_err(failed)?;
        self.say(format_args!("successfully pushed artifact with digest: {digest}"));
        Ok(())
    }

    async fn push_manifest(
        &self,
        media_type: &str,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), SociError> {
        self.say(format_args!("pushing artifact with digest: {digest}"));
        let bytes = Bytes::copy_from_slice(bytes);
        let pushed = self.repository.push_manifest(&digest.to_string(), media_type, bytes).await;
        pushed.map_err(failed)?;
        self.say(format_args!("successfully pushed artifact with digest: {digest}"));
        Ok(())
    }
}

fn failed(source: spanfs_fetch::RegistryError) -> SociError {
    SociError::Registry { attempt: "error pushing graph to remote", source }
}

/// Blobs up to this are sent from memory.
const MEMORY_LEN_MAX: u64 = 4 << 20;

/// The bytes of a blob, as often as an upload needs them.
async fn content(node: &Node) -> Result<Content, SociError> {
    let Descriptor { digest, size, .. } = node.descriptor;
    if size <= MEMORY_LEN_MAX {
        return Ok(Content::Bytes(node.store.bytes(&digest, size).await?.into()));
    }
    let reader = node.store.reader(&node.descriptor).await?;
    let spool = move || {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut file = tempfile::tempfile()?;
        let mut piece = vec![0; 1 << 20];
        let mut reader = reader.take(size);
        loop {
            let count = reader.read(&mut piece)?;
            if count == 0 {
                break;
            }
            let data = piece.get(..count).unwrap_or_default();
            hasher.update(data);
            file.write_all(data)?;
        }
        file.rewind()?;
        Ok::<_, std::io::Error>((file, hasher.finish()))
    };
    let spooled = tokio::task::spawn_blocking(spool).await.map_err(std::io::Error::other);
    let directory = std::env::temp_dir();
    let disk = |error| SociError::disk("write", &directory, error);
    let (file, found) = spooled.map_err(disk)?.map_err(disk)?;
    if found != digest {
        return Err(SociError::said(format!("blob {digest}: its bytes have the digest {found}")));
    }
    Ok(Content::File { file: Arc::new(file), offset: 0, len: size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soci::PROGRAM;
    use crate::soci::grammar::{Asked, parse};

    #[test]
    fn flags_become_options() {
        let line = "push --user u:p:q --skip-verify --hosts-dir /a,/b --tlscacert c --tlscert d x";
        let line: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let Ok(Asked::Run(arguments)) = parse(&PROGRAM, &line, |_| None) else { panic!() };
        let options = options(&arguments);
        assert_eq!(options.hosts_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(options.tls.skip_verify && !options.plain_http);
        assert_eq!(options.tls.client_pairs, [("d".into(), "d".into())]);
        let Some(CredentialSource::Given { host: None, login, .. }) = options.credentials.first()
        else {
            panic!()
        };
        let (username, password) = ("u".to_owned(), Secret::new("p:q"));
        assert_eq!(*login, Login::Password { username, password });
        assert!(Existing::of("maybe").is_err());
    }
}
