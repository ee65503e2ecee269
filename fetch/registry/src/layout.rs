//! Taking the images of an OCI layout directory into a repository.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use spanfs_layer::Digest;

use crate::registry::RegistryError;
use crate::route::is_tag;
use crate::store::{Content, Descriptor, Outline, Store};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes inside indexes.
const DEPTH_MAX: usize = 8;

/// Serve the layout's blobs from where they stand, and its manifests with their tags. Returns what
/// `index.json` names, with its tags.
pub(crate) fn put_layout(
    store: &mut Store,
    repository: &str,
    root: &Path,
) -> Result<Vec<(Option<String>, Digest)>, RegistryError> {
    let index: Outline = parse(&root.join("index.json"), &read(&root.join("index.json"))?)?;
    let layout = Layout { root, repository };
    let mut found = Vec::new();
    for descriptor in &index.manifests {
        layout.put_manifest(store, descriptor, DEPTH_MAX)?;
        let tag = descriptor.annotations.get(REF_NAME).filter(|tag| is_tag(tag)).cloned();
        if let Some(tag) = &tag {
            store.repository(repository).tags.insert(tag.clone(), descriptor.digest);
        }
        found.push((tag, descriptor.digest));
    }
    Ok(found)
}

struct Layout<'a> {
    root: &'a Path,
    repository: &'a str,
}

impl Layout<'_> {
    fn path(&self, digest: &Digest) -> PathBuf {
        let algorithm = digest.algorithm().name();
        self.root.join("blobs").join(algorithm).join(digest.hex().to_string())
    }

    fn put_manifest(
        &self,
        store: &mut Store,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<(), RegistryError> {
        let path = self.path(&descriptor.digest);
        if depth == 0 {
            return Err(RegistryError::TooDeep { path });
        }
        let bytes = read(&path)?;
        let outline: Outline = parse(&path, &bytes)?;
        for blob in outline.config.iter().chain(&outline.layers) {
            let path = self.path(&blob.digest);
            // A layout may leave out what others have (an artifact's subject, foreign layers).
            if path.exists() {
                let content = Content::open(&path)
                    .map_err(|source| RegistryError::Read { path: path.clone(), source })?;
                store.put_blob(self.repository, blob.digest, content);
            }
        }
        for manifest in &outline.manifests {
            if self.path(&manifest.digest).exists() {
                self.put_manifest(store, manifest, depth - 1)?;
            }
        }
        let media_type = descriptor.media_type.clone();
        store
            .put_manifest(self.repository, None, media_type, Bytes::from(bytes))
            .map_err(|source| RegistryError::Parse { path, source })?;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RegistryError> {
    fs::read(path).map_err(|source| RegistryError::Read { path: path.to_owned(), source })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Outline, RegistryError> {
    serde_json::from_slice(bytes)
        .map_err(|source| RegistryError::Parse { path: path.to_owned(), source })
}
