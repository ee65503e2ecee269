//! containerd's content store, through its API; its files, where we can see them.
//!
//! containerd keeps a blob once for all namespaces. A file that stands in its store is not written
//! again by whoever asks to write that digest: it is adopted, and only a commit is missing. So a file
//! that we checked is linked there and then adopted, in place of being sent through the socket and
//! hashed again. A garbage collection in between takes the link away: then there is nothing to adopt,
//! and the file is sent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spanfs_fetch::{Blob, Nearby, ReadPool};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;
use tokio::runtime::Handle;

use super::remote::RemoteBlob;
use super::{BlobName, KeepError, Kept};
use crate::containerd::{Client, ClientError, ClientOptions, ContentStore, Fault};

/// Where a blob can be fetched from; other tools look for it.
const SOURCE: &str = "containerd.io/distribution.source.";
/// By such labels of the manifest containerd's garbage collector leaves a blob; behind it stands a name.
const HOLD: &str = "containerd.io/gc.ref.content.spanfs.";
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Should we be killed, containerd forgets what we had not finished by then.
const LEASE_TIME: Duration = Duration::from_secs(3600);
/// containerd itself reads no longer ones.
const DOCUMENT_LEN_MAX: u64 = 8 << 20;
/// Bytes sent at once.
const PIECE_LEN: usize = 1 << 20;

/// See the module.
pub(super) struct Containerd {
    client: Client,
    runtime: Handle,
    /// Directory of its blobs; `Some(None)` once it is known that we can't see it.
    blobs: Mutex<Option<Option<PathBuf>>>,
}

impl Containerd {
    pub(super) fn new(address: &Path, runtime: &Handle) -> Result<Self, ClientError> {
        let address = address.display().to_string();
        let options = ClientOptions { address, ..ClientOptions::default() };
        // The channel belongs to a runtime.
        let _entered = runtime.enter();
        let client = Client::lazy(&options)?;
        Ok(Self { client, runtime: runtime.clone(), blobs: Mutex::default() })
    }

    fn content(&self, namespace: &str) -> Result<ContentStore, ClientError> {
        Ok(self.client.with_namespace(namespace)?.content())
    }

    pub(super) fn find(&self, name: &BlobName, pool: &ReadPool) -> Option<Arc<dyn Blob>> {
        let Descriptor { digest, size, .. } = name.descriptor;
        let content = self.content(&name.namespace).ok()?;
        let info = self.runtime.block_on(content.info(&digest));
        let info = info.inspect_err(|error| tracing::debug!(%digest, %error, "not looked up"));
        if info.ok().flatten()?.size != size {
            return None;
        }
        let path = self.blobs(&name.manifest).map(|blobs| blobs.join(place(&digest)));
        let file = path.and_then(|path| File::open(path).ok());
        let file = file.filter(|file| file.metadata().is_ok_and(|it| it.len() == size));
        Some(match file {
            Some(file) => pool.blob(Arc::new(file), 0, digest, size),
            None => {
                let runtime = self.runtime.clone();
                Arc::new(RemoteBlob { content, digest, size, runtime })
            }
        })
    }

    pub(super) fn nearby(&self, namespace: &str) -> Option<Nearby> {
        let content = self.content(namespace).ok()?;
        Some(Arc::new(move |digest| {
            let content = content.clone();
            Box::pin(async move {
                let found = content.bytes(&digest, DOCUMENT_LEN_MAX).await;
                found
                    .map(Bytes::from)
                    .inspect_err(|error| tracing::debug!(%digest, %error, "not near"))
                    .ok()
            })
        }))
    }

    /// containerd's directory of blobs, if we see it: a blob that it has must stand there.
    fn blobs(&self, witness: &Digest) -> Option<PathBuf> {
        let mut known = self.blobs.lock();
        if let Some(known) = &*known {
            return known.clone();
        }
        let root = self.runtime.block_on(self.client.content_root());
        let root = root.inspect_err(|error| tracing::debug!(%error, "content root not known"));
        let blobs = root.ok()??.join("blobs");
        let seen = blobs.join(place(witness)).is_file().then_some(blobs);
        if seen.is_none() {
            tracing::info!("containerd's blobs are not seen from here: they go through its socket");
        }
        *known = Some(seen.clone());
        seen
    }

    pub(super) fn put(&self, name: &BlobName, file: Option<&Path>) -> Result<Kept, KeepError> {
        let digest = name.descriptor.digest;
        let failed = |source| KeepError::Containerd { digest, source };
        if self.runtime.block_on(self.has(name)).map_err(failed)? {
            return Ok(Kept::Yes);
        }
        let linked = file.is_some_and(|file| self.link(name, file));
        let reading = |path: &Path| {
            let path = path.to_owned();
            move |source| KeepError::File { digest, path, source }
        };
        let opened = file.map(|path| File::open(path).map_err(reading(path))).transpose()?;
        let written = self.runtime.block_on(self.write(name, opened)).map_err(failed)?;
        if written == Kept::Yes {
            let namespace = &name.namespace;
            tracing::debug!(%digest, namespace, linked, "the blob is in containerd's content store");
        }
        Ok(written)
    }

    /// Whether the namespace has the blob; then it is labelled as if we had brought it.
    async fn has(&self, name: &BlobName) -> Result<bool, ClientError> {
        let content = self.content(&name.namespace)?;
        let digest = &name.descriptor.digest;
        let Some(info) = content.info(digest).await? else { return Ok(false) };
        let missing = missing_labels(name, &info.labels);
        if !missing.is_empty() {
            content.label(digest, &missing).await?;
        }
        if name.is_held {
            hold(&content, name).await?;
        }
        Ok(true)
    }

    /// Let containerd's store have our file as its own. False where that can't be.
    fn link(&self, name: &BlobName, file: &Path) -> bool {
        let digest = name.descriptor.digest;
        let Some(blobs) = self.blobs(&name.manifest) else { return false };
        match link(file, &blobs.join(place(&digest))) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%digest, %error, "not linked into containerd's content store");
                false
            }
        }
    }

    /// Commit what containerd can adopt, else send it the file.
    async fn write(&self, name: &BlobName, file: Option<File>) -> Result<Kept, ClientError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let client = self.client.with_namespace(&name.namespace)?;
        let digest = name.descriptor.digest;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("spanfs-{}-{number}-{:.12}", std::process::id(), digest.hex());
        let lease = client.leases().create(&id, LEASE_TIME).await?;
        let written = async {
            let content = lease.client()?.content();
            match self.write_once(&content, name, file.as_ref()).await {
                // What an earlier try left was not what it should be.
                Err(error) if error.fault() == Some(Fault::FailedPrecondition) => {
                    tracing::warn!(%digest, %error, "writing the blob anew");
                    content.abort(&reference(&digest)).await?;
                    self.write_once(&content, name, file.as_ref()).await
                }
                written => written,
            }
        };
        let written = match written.await {
            Ok(Kept::Yes) if name.is_held => {
                hold(&client.content(), name).await.map(|()| Kept::Yes)
            }
            written => written,
        };
        // The manifest's own labels keep the blob from now on. An image may have been removed before the
        // blob was there for that to take it along: then nothing keeps it, and it goes with the lease.
        let is_orphan = match (&written, client.content().info(&name.manifest).await) {
            (Ok(Kept::Yes), Ok(manifest)) => manifest.is_none(),
            _ => false,
        };
        if let Err(error) = lease.end(is_orphan).await {
            tracing::debug!(id, %error, "a lease ends by itself");
        }
        written
    }

    async fn write_once(
        &self,
        content: &ContentStore,
        name: &BlobName,
        file: Option<&File>,
    ) -> Result<Kept, ClientError> {
        let Descriptor { digest, size, .. } = name.descriptor;
        let reference = reference(&digest);
        let Some(mut writer) = content.resume(&reference, &digest, size).await? else {
            content.label(&digest, &labels(name)).await?;
            return Ok(Kept::Yes);
        };
        if writer.offset() < size {
            let Some(file) = file else {
                writer.close().await?;
                // An empty ingest would only stand about.
                content.abort(&reference).await?;
                return Ok(Kept::Missing);
            };
            let mut piece = vec![0; PIECE_LEN];
            while writer.offset() < size {
                let read = read_at(file, &mut piece, writer.offset()).map_err(|error| {
                    let (what, reason) = ("the file of a blob", error.to_string());
                    ClientError::Argument { what, reason }
                })?;
                writer.write(piece.get(..read).unwrap_or_default()).await?;
            }
        }
        writer.commit(&labels(name)).await?;
        Ok(Kept::Yes)
    }
}

/// Have the manifest keep the blob, unless it does.
async fn hold(content: &ContentStore, name: &BlobName) -> Result<(), ClientError> {
    let blob = name.descriptor.digest.to_string();
    let Some(manifest) = content.info(&name.manifest).await? else { return Ok(()) };
    if manifest.labels.values().any(|held| *held == blob) {
        return Ok(());
    }
    let label = format!("{HOLD}{:.12}", name.descriptor.digest.hex().to_string());
    content.label(&name.manifest, &BTreeMap::from([(label, blob)])).await
}

/// What containerd's own fetcher calls the ingest of a layer: who comes second waits, or goes on.
fn reference(digest: &Digest) -> String {
    format!("layer-{digest}")
}

/// Path of a blob below the directory of blobs.
fn place(digest: &Digest) -> PathBuf {
    Path::new(digest.algorithm().name()).join(digest.hex().to_string())
}

/// As many bytes as there are, at least one.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    match file.read_at(buffer, offset)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

/// Give a durable file a second name, as containerd would have written it. What stands there already
/// is containerd's.
fn link(file: &Path, to: &Path) -> io::Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o444))?;
    match fs::hard_link(file, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        linked => linked?,
    }
    File::open(to.parent().unwrap_or(to))?.sync_all()
}

fn labels(name: &BlobName) -> BTreeMap<String, String> {
    BTreeMap::from([
        (source_label(name), name.repository.clone()),
        (UNCOMPRESSED.to_owned(), name.diff_id.to_string()),
    ])
}

/// Host without port.
fn source_label(name: &BlobName) -> String {
    let host = name.host.as_str();
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    };
    format!("{SOURCE}{}", host.trim_matches(['[', ']']))
}

/// Labels that a blob lacks. Several repositories of a host stand in one label.
fn missing_labels(name: &BlobName, found: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut missing = labels(name);
    missing.retain(|key, value| match found.get(key) {
        None => true,
        Some(old) if key.starts_with(SOURCE) => {
            let is_new = old.split(',').all(|it| it != value);
            *value = format!("{old},{value}");
            is_new
        }
        Some(_) => false,
    });
    missing
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn name(host: &str, repository: &str) -> BlobName {
        let digest = Digest::of(b"x");
        BlobName {
            descriptor: Descriptor::new("application/x", digest, 1),
            diff_id: digest,
            manifest: digest,
            host: host.to_owned(),
            repository: repository.to_owned(),
            namespace: "default".to_owned(),
            is_held: false,
        }
    }

    #[test]
    fn sources_are_named_as_containerd_names_them() {
        for (host, label) in [
            ("docker.io", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1"),
            ("localhost:80", "localhost"),
            ("[::1]:5000", "::1"),
        ] {
            let label = format!("containerd.io/distribution.source.{label}");
            assert_eq!(labels(&name(host, "a/b")).get(&label).map(String::as_str), Some("a/b"));
        }
    }

    #[test]
    fn repositories_are_added_to_those_that_are_known() {
        let wanted = name("r.example", "new");
        let all = labels(&wanted);
        assert_eq!(missing_labels(&wanted, &BTreeMap::new()), all);
        assert!(missing_labels(&wanted, &all).is_empty());
        let key = "containerd.io/distribution.source.r.example".to_owned();
        let mut old = all.clone();
        old.insert(key.clone(), "one,two".to_owned());
        assert_eq!(missing_labels(&wanted, &old).get(&key).unwrap(), "one,two,new");
        old.insert(key, "one,new,two".to_owned());
        assert!(missing_labels(&wanted, &old).is_empty());
    }

    #[test]
    fn a_file_gets_a_second_name_and_no_copy() {
        let directory = tempfile::tempdir().unwrap();
        let (file, to) = (directory.path().join("file"), directory.path().join("to"));
        fs::write(&file, "bytes").unwrap();
        link(&file, &to).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().ino(), fs::metadata(&to).unwrap().ino());
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o444);
        link(&file, &to).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"bytes");
    }
}
