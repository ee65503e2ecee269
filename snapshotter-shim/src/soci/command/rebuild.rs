//! `soci rebuild-db`: records made anew from what the content store holds.
//!
//! An index is known by its first bytes, as its form is canonical: nothing else is read whole. Beyond
//! the peer, indexes of version 2 and prefetch artifacts are recorded as well.

use std::collections::{HashMap, HashSet};

use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, ImageConfig, Manifest, media_type};
use spanfs_layer::soci::{self, SociIndex, Version};

use super::super::SociError;
use super::super::artifacts::{Artifact, ArtifactKind, Artifacts};
use super::super::session::{Session, index_record};
use super::super::store::{DOCUMENT_LEN_MAX, Listed, Store};

pub(in crate::soci) async fn rebuild_db(session: &Session) -> Result<(), SociError> {
    let store = session.store().await?;
    let images = session.client_if_there().await.map(Store::Containerd);
    let records = session.records().await?;
    rebuild(&records, &store, images.as_ref()).await
}

/// Forget records whose blob is gone, and record the indexes that have none. Platforms are told by
/// image configs in `images`; an index whose image is not there is left out.
pub(in crate::soci) async fn rebuild(
    records: &Artifacts,
    store: &Store,
    images: Option<&Store>,
) -> Result<(), SociError> {
    let blobs: HashMap<Digest, Listed> =
        store.list().await?.into_iter().map(|it| (it.digest, it)).collect();
    let known: Vec<(Digest, Artifact)> = records.all()?;
    let gone = known.iter().map(|(digest, _)| *digest).filter(|it| !blobs.contains_key(it));
    let gone: Vec<Digest> = gone.collect();
    let known: HashSet<Digest> = known.into_iter().map(|(digest, _)| digest).collect();
    let mut found = Vec::new();
    for blob in blobs.values().filter(|blob| !known.contains(&blob.digest)) {
        if !looks_like_index(store, blob).await? {
            continue;
        }
        let bytes = store.bytes(&blob.digest, DOCUMENT_LEN_MAX).await?;
        let Ok(index) = SociIndex::parse(&bytes) else { continue };
        let Some(image) = image_of(&index, &blob.digest, images).await else { continue };
        let descriptor = Descriptor::new(media_type::MANIFEST, blob.digest, blob.size);
        let platform = &image.platform;
        let mut record =
            index_record(index.version, &descriptor, platform, &image.manifest, &image.target);
        record.created = Artifact::time(blob.created);
        found.push((blob.digest, record));
        for entry in &index.manifest.layers {
            let Some(blob) = blobs.get(&entry.digest).filter(|it| !known.contains(&it.digest))
            else {
                continue;
            };
            found.extend(entry_record(entry, blob).map(|record| (blob.digest, record)));
        }
    }
    Ok(records.change(&found, &gone)?)
}

/// Bytes in which the media type of an index's config stands.
const HEAD_LEN: u64 = 256;

async fn looks_like_index(store: &Store, blob: &Listed) -> Result<bool, SociError> {
    // Not even a config and a subject fit into less than the head.
    if blob.size < HEAD_LEN || blob.size > DOCUMENT_LEN_MAX {
        return Ok(false);
    }
    let head = store.range(&blob.digest, 0..HEAD_LEN).await?;
    let text = String::from_utf8_lossy(&head);
    Ok([Version::V1, Version::V2].iter().any(|version| text.contains(version.artifact_type())))
}

struct IndexedImage {
    manifest: Digest,
    target: Digest,
    platform: String,
}

async fn image_of(
    index: &SociIndex,
    digest: &Digest,
    images: Option<&Store>,
) -> Option<IndexedImage> {
    let images = images?;
    match (index.version, &index.manifest.subject) {
        (Version::V1, Some(subject)) => {
            let bytes = images.bytes(&subject.digest, DOCUMENT_LEN_MAX).await.ok()?;
            let manifest = Manifest::parse(&bytes).ok()?;
            let json = images.bytes(&manifest.config.digest, DOCUMENT_LEN_MAX).await.ok()?;
            let platform = ImageConfig::parse(&json).ok()?.platform.normalized().to_string();
            let target = target_of(images, &subject.digest).await.unwrap_or(subject.digest);
            Some(IndexedImage { manifest: subject.digest, target, platform })
        }
        (Version::V1, None) => None,
        (Version::V2, _) => converted_image(images, digest).await,
    }
}

/// What the name of an image stands for whose manifest this is.
async fn target_of(images: &Store, manifest: &Digest) -> Option<Digest> {
    for (target, index) in indexes(images).await {
        if index.manifests.iter().any(|entry| entry.digest == *manifest) {
            return Some(target);
        }
    }
    None
}

/// The converted image that carries an index of version 2.
async fn converted_image(images: &Store, digest: &Digest) -> Option<IndexedImage> {
    for (target, index) in indexes(images).await {
        let Some(entry) = index.manifests.iter().find(|entry| entry.digest == *digest) else {
            continue;
        };
        let manifest = soci::image_manifest_digest(entry)?.parse().ok()?;
        let platform = entry.platform.as_ref()?.normalized().to_string();
        return Some(IndexedImage { manifest, target, platform });
    }
    None
}

/// The image indexes that names stand for.
async fn indexes(images: &Store) -> Vec<(Digest, spanfs_layer::oci::Index)> {
    let Store::Containerd(client) = images else { return Vec::new() };
    let mut found = Vec::new();
    for record in client.images().list(&[]).await.unwrap_or_default() {
        let image = super::super::image::Image::read(images, &record.target).await;
        if let Ok(index) = image.map(|image| image.index) {
            found.extend(index.map(|index| (record.target.digest, index)));
        }
    }
    found
}

fn entry_record(entry: &Descriptor, blob: &Listed) -> Option<Artifact> {
    let kind = match entry.media_type.as_str() {
        soci::ZTOC_MEDIA_TYPE => ArtifactKind::Ztoc,
        soci::PREFETCH_MEDIA_TYPE => ArtifactKind::Prefetch,
        _ => return None,
    };
    Some(Artifact {
        kind,
        size: blob.size,
        of: soci::layer_digest(entry)?.to_owned(),
        image: String::new(),
        platform: String::new(),
        media_type: entry.media_type.clone(),
        artifact_type: String::new(),
        span_size: soci::span_size(entry).unwrap_or(0),
        created: Artifact::time(blob.created),
    })
}
