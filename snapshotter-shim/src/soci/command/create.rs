//! `soci create`: an index of version 1 beside an image.

use std::collections::BTreeMap;

use spanfs_layer::Digest;
use spanfs_layer::soci::SociIndex;

use super::super::SociError;
use super::super::build::Builder;
use super::super::image::Image;
use super::super::platforms::Platforms;
use super::super::session::{Session, StoreKind, keep_index};
use super::super::store::Store;
use crate::containerd::{Client, GC_REF_CONTENT, ImageRecord};

pub(in crate::soci) async fn create(session: &Session) -> Result<(), SociError> {
    let [reference] = session.arguments.positionals();
    let reference = reference.filter(|it| !it.is_empty());
    let reference =
        reference.ok_or_else(|| SociError::said("source image needs to be specified"))?;
    let options = session.build_options()?;
    let platforms = Platforms::of(&session.arguments)?;
    let client = session.client().await?;
    let record = client.images().get(reference).await?;
    let images = Store::Containerd(client.clone());
    let targets = vec![session.store_with(&session.leased(&client).await?)?];
    let (records, output) = (session.records().await?, session.output.clone());
    let builder = Builder { images, targets, records, output, options };
    index(session, &builder, &client, &record, &platforms).await
}

async fn index(
    session: &Session,
    builder: &Builder,
    client: &Client,
    record: &ImageRecord,
    platforms: &Platforms,
) -> Result<(), SociError> {
    let image = Image::read(&builder.images, &record.target).await?;
    for platform in image.select(&builder.images, platforms).await? {
        let built = builder.build(&platform.manifest).await?;
        let index = built.with_parts(|parts| SociIndex::v1(parts, &platform.descriptor))?;
        let manifest = platform.descriptor.digest;
        let (index, _) =
            keep_index(builder, &index, &platform, &manifest, &record.target.digest).await?;
        if session.kind == StoreKind::Containerd {
            keep_with_image(client, record, &index.digest).await?;
        }
    }
    Ok(())
}

/// The peer's label; it holds the latest index only.
const LATEST: &str = "soci-index";

/// Let an image's record keep an index. The peer has one label for all of an image's indexes, so that
/// all but one are collected; each has its own here, and the latest has the peer's, too.
async fn keep_with_image(
    client: &Client,
    record: &ImageRecord,
    index: &Digest,
) -> Result<(), SociError> {
    let labels = [format!("{GC_REF_CONTENT}.{LATEST}"), label_of(index)];
    let mut labelled = record.clone();
    labelled.labels = labels.iter().map(|key| (key.clone(), index.to_string())).collect();
    let fields: Vec<String> = labels.iter().map(|key| format!("labels.{key}")).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    Ok(client.images().update(&labelled, &fields).await?)
}

fn label_of(index: &Digest) -> String {
    format!("{GC_REF_CONTENT}.{LATEST}.{:.12}", index.hex().to_string())
}

/// Take the labels of removed indexes away from all images.
pub(in crate::soci) async fn release(client: &Client, removed: &[Digest]) -> Result<(), SociError> {
    let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
    for mut image in client.images().list(&[]).await? {
        let stale = |(key, value): &(&String, &String)| {
            key.starts_with(&format!("{GC_REF_CONTENT}.{LATEST}")) && removed.contains(value)
        };
        let stale: Vec<String> =
            image.labels.iter().filter(stale).map(|(key, _)| key.clone()).collect();
        if stale.is_empty() {
            continue;
        }
        // An empty value takes a label away.
        image.labels =
            stale.iter().map(|key| (key.clone(), String::new())).collect::<BTreeMap<_, _>>();
        let fields: Vec<String> = stale.iter().map(|key| format!("labels.{key}")).collect();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        client.images().update(&image, &fields).await?;
    }
    Ok(())
}
