//! `soci convert`: an image that carries its SOCI indexes, of version 2.

use std::collections::BTreeMap;

use spanfs_layer::Digest;
use spanfs_layer::oci::{Descriptor, Index, Manifest, media_type};
use spanfs_layer::soci::{self, Indexed, NoZtocs, SociIndex, Version};

use super::super::SociError;
use super::super::artifacts::ArtifactKind;
use super::super::build::Builder;
use super::super::image::{Image, PlatformImage};
use super::super::platforms::Platforms;
use super::super::session::{Session, StoreKind, index_record};
use super::super::store::{DOCUMENT_LEN_MAX, Store, references};
use crate::containerd::{Client, ImageRecord};

pub(in crate::soci) async fn convert(session: &Session) -> Result<(), SociError> {
    let (reference, destination) = arguments(&session.arguments)?;
    check_destination(destination)?;
    let options = session.build_options()?;
    let platforms = Platforms::of(&session.arguments)?;
    let client = session.client().await?;
    let record = client.images().get(reference).await?;
    let leased = session.leased(&client).await?;
    // The image's record keeps its content in containerd, wherever else artifacts go.
    let mut targets = vec![Store::Containerd(leased.clone())];
    if session.kind == StoreKind::Layout {
        targets.push(session.store_with(&leased)?);
    }
    let (records, output) = (session.records().await?, session.output.clone());
    let images = Store::Containerd(client.clone());
    let builder = Builder { images, targets, records, output, options };
    let root = run(&builder, &record.target, &platforms).await?;
    name(&client, destination, root).await
}

/// Source and destination.
pub(super) fn arguments(
    arguments: &super::super::grammar::Arguments,
) -> Result<(&str, &str), SociError> {
    let [source, destination] = arguments.positionals();
    let given = |text: Option<&'_ str>, what: &str| match text {
        Some(text) if !text.is_empty() => Ok(()),
        _ => Err(SociError::said(format!("{what} needs to be specified"))),
    };
    given(source, "source image")?;
    given(destination, "destination")?;
    Ok((source.unwrap_or_default(), destination.unwrap_or_default()))
}

/// The destination names a registry, a repository and a tag, no digest.
fn check_destination(text: &str) -> Result<(), SociError> {
    const FORM: &str =
        "the destination image must be a tagged ref of the form \"registry/repository:tag\"";
    let refuse = |reason: String| Err(SociError::said(format!("{FORM}: {reason}")));
    if text.contains('@') {
        return refuse("reference must not contain a digest".to_owned());
    }
    let (host, rest) = text.split_once('/').unwrap_or_default();
    let is_host = host == "localhost" || host.contains(['.', ':']);
    if !is_host {
        return refuse(format!("could not parse reference: {text:?} names no registry"));
    }
    if let Err(error) = text.parse::<spanfs_fetch::Reference>() {
        return refuse(format!("could not parse reference: {error}"));
    }
    if !rest.contains(':') {
        return refuse("reference must be tagged".to_owned());
    }
    Ok(())
}

/// Convert the image that `target` is the root of; everything new goes to the builder's targets. The
/// root of the new image.
pub(super) async fn run(
    builder: &Builder,
    target: &Descriptor,
    platforms: &Platforms,
) -> Result<Descriptor, SociError> {
    let image = Image::read(&builder.images, target).await?;
    let mut made: Vec<(PlatformImage, SociIndex)> = Vec::new();
    for platform in image.select(&builder.images, platforms).await? {
        let built = builder.build(&platform.manifest).await?;
        // Where there is none, other platforms may have layers that are worth it.
        if let Ok(index) = built.with_parts(SociIndex::v2) {
            made.push((platform, index));
        }
    }
    if made.is_empty() {
        return Err(NoZtocs.into());
    }
    let around: Index = match (&image.index, made.first()) {
        (Some(index), _) => index.clone(),
        (None, Some((only, _))) => soci::index_of_one(target, only.platform.clone()),
        (None, None) => return Err(NoZtocs.into()),
    };
    let written: Vec<Vec<u8>> = made.iter().map(|(_, index)| index.to_canonical()).collect();
    let indexed: Vec<Indexed<'_>> = made
        .iter()
        .zip(&written)
        .map(|((platform, _), soci_index)| Indexed {
            image: platform.descriptor.digest,
            manifest: &platform.bytes,
            platform: platform.platform.clone(),
            soci_index,
        })
        .collect();
    let converted = soci::convert(&around, &indexed)?;
    let root = Descriptor::of(media_type::INDEX, &converted.index);
    let mut records = Vec::new();
    for (((platform, index), bytes), manifest) in
        made.iter().zip(&written).zip(&converted.manifests)
    {
        let descriptor = Descriptor::of(media_type::MANIFEST, bytes);
        let (named, config) = (&index.manifest.layers, &index.manifest.config.digest);
        for store in &builder.targets {
            store.put_index(bytes, &descriptor, named, config).await?;
        }
        let of = put_manifest(builder, manifest).await?;
        let platform = platform.platform.normalized().to_string();
        let record = index_record(Version::V2, &descriptor, &platform, &of, &root.digest);
        debug_assert_eq!(record.kind, ArtifactKind::Index);
        records.push((descriptor.digest, record));
    }
    put_root(builder, &converted.index).await?;
    builder.records.change(&records, &[])?;
    Ok(root)
}

/// Write an image's manifest; it keeps config and layers.
async fn put_manifest(builder: &Builder, bytes: &[u8]) -> Result<Digest, SociError> {
    let digest = Digest::of(bytes);
    let what = || format!("converted manifest {digest}");
    let manifest =
        Manifest::parse(bytes).map_err(|source| SociError::Document { what: what(), source })?;
    let labels = references("l", manifest.layers.iter(), Some(&manifest.config.digest));
    put(builder, bytes, &labels).await?;
    Ok(digest)
}

/// Write the image index; it keeps its manifests.
async fn put_root(builder: &Builder, bytes: &[u8]) -> Result<(), SociError> {
    let what = || "converted image index".to_owned();
    let index =
        Index::parse(bytes).map_err(|source| SociError::Document { what: what(), source })?;
    put(builder, bytes, &references("m", index.manifests.iter(), None)).await
}

async fn put(
    builder: &Builder,
    bytes: &[u8],
    labels: &BTreeMap<String, String>,
) -> Result<(), SociError> {
    debug_assert!(bytes.len() as u64 <= DOCUMENT_LEN_MAX);
    // Where artifacts go beside containerd, images are of no use.
    match builder.targets.first() {
        Some(store) => store.put(bytes, labels).await.map(drop),
        None => Ok(()),
    }
}

async fn name(client: &Client, name: &str, target: Descriptor) -> Result<(), SociError> {
    let record = ImageRecord { name: name.to_owned(), target, labels: BTreeMap::new() };
    Ok(client.images().put(&record).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let check = |text: &str, expected: &str| match check_destination(text) {
            Ok(()) => assert_eq!(expected, "", "{text}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!expected.is_empty() && error.contains(expected), "{text}: {error}");
            }
        };
        check("r.io/a/b:1", "");
        check("localhost:5000/a:x", "");
        check("r.io/a/b", "must be tagged");
        check("r.io:5000/a/b", "must be tagged");
        check("a:1", "could not parse reference");
        check("r.io/A:1", "could not parse reference");
        let digest = Digest::of(b"x");
        check(&format!("r.io/a:1@{digest}"), "must not contain a digest");
    }
}
