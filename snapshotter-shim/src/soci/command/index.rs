//! `soci index`: list, print and remove SOCI indexes.

use std::collections::HashSet;
use std::io::Write as _;
use std::time::SystemTime;

use spanfs_layer::Digest;
use spanfs_layer::soci::Version;

use super::super::artifacts::{Artifact, ArtifactKind};
use super::super::image::Image;
use super::super::platforms::{self, Platforms};
use super::super::session::{Session, StoreKind};
use super::super::store::{DOCUMENT_LEN_MAX, Store};
use super::super::{SociError, duration, json, table};
use super::create::release;
use crate::containerd::ImageRecord;

pub(in crate::soci) async fn list(session: &Session) -> Result<(), SociError> {
    let arguments = &session.arguments;
    let reference = arguments.text("ref").filter(|it| !it.is_empty());
    let wanted = arguments.texts("platform").iter().map(|it| platforms::parse(it));
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    let mut indexes: Vec<_> = session.records().await?.all()?;
    indexes.retain(|(_, record)| record.kind == ArtifactKind::Index);
    let images = match reference {
        Some(reference) => {
            let (image, manifests) = manifests_of(session, reference).await?;
            indexes.retain(|(_, record)| manifests.contains(&record.of));
            vec![image]
        }
        None => {
            let is_wanted = |record: &Artifact| {
                let platform = platforms::parse(&record.platform);
                wanted.is_empty()
                    || platform.is_ok_and(|found| wanted.iter().any(|it| it.matches(&found)))
            };
            indexes.retain(|(_, record)| is_wanted(record));
            session.images().await
        }
    };
    indexes.sort_by(|(a, first), (b, second)| {
        second.created.cmp(&first.created).then_with(|| a.to_string().cmp(&b.to_string()))
    });
    if arguments.is_set("quiet") {
        indexes.iter().for_each(|(digest, _)| session.output.line(digest));
        return Ok(());
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    let now = SystemTime::now();
    for (digest, record) in &indexes {
        let is_it = |image: &&ImageRecord| image.target.digest.to_string() == record.image;
        let mut names: Vec<&str> =
            images.iter().filter(is_it).map(|image| image.name.as_str()).collect();
        if names.is_empty() {
            names.push("");
        }
        rows.extend(names.iter().map(|name| row(digest, record, name, now)));
    }
    table::lines(&rows).iter().for_each(|line| session.output.line(line));
    Ok(())
}

const HEAD: [&str; 7] =
    ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"];

fn row(digest: &Digest, record: &Artifact, name: &str, now: SystemTime) -> [String; 7] {
    let version = match record.artifact_type.as_str() {
        it if it == Version::V1.artifact_type() => "v1",
        it if it == Version::V2.artifact_type() => "v2",
        _ => "",
    };
    [
        digest.to_string(),
        record.size.to_string(),
        name.to_owned(),
        record.platform.clone(),
        record.media_type.clone(),
        version.to_owned(),
        age(record, now),
    ]
}

/// How long ago an artifact was made.
pub(super) fn age(record: &Artifact, now: SystemTime) -> String {
    match now.duration_since(record.created()) {
        Ok(age) => format!("{} ago", duration::in_seconds(age)),
        Err(_) => "n/a".to_owned(),
    }
}

/// An image, and the digests of its manifests for the platforms that were asked for.
pub(super) async fn manifests_of(
    session: &Session,
    reference: &str,
) -> Result<(ImageRecord, HashSet<String>), SociError> {
    let client = session.client().await?;
    let record = client.images().get(reference).await?;
    let store = Store::Containerd(client);
    let image = Image::read(&store, &record.target).await?;
    let platforms = match Platforms::of(&session.arguments)? {
        Platforms::Default => Platforms::All,
        wanted => wanted,
    };
    let manifests = match (&image.index, &platforms) {
        // Manifests of other platforms need not be here to be named.
        (Some(index), Platforms::All) => {
            index.manifests.iter().map(|entry| entry.digest.to_string()).collect()
        }
        _ => {
            let found = image.select(&store, &platforms).await?;
            found.iter().map(|it| it.descriptor.digest.to_string()).collect()
        }
    };
    Ok((record, manifests))
}

/// The digest that a command was given.
pub(super) fn digest_argument(session: &Session) -> Result<Digest, SociError> {
    let [digest] = session.arguments.positionals();
    parse_digest(digest.unwrap_or_default())
}

fn parse_digest(text: &str) -> Result<Digest, SociError> {
    text.parse().map_err(|_| SociError::said("invalid checksum digest format"))
}

/// The record of an artifact.
pub(super) async fn recorded(session: &Session, digest: &Digest) -> Result<Artifact, SociError> {
    let found = session.records().await?.get(digest)?;
    found.ok_or_else(|| {
        SociError::said(format!("couldn't retrieve artifact for {digest}, not found"))
    })
}

pub(in crate::soci) async fn info(session: &Session) -> Result<(), SociError> {
    let digest = digest_argument(session)?;
    if recorded(session, &digest).await?.kind == ArtifactKind::Ztoc {
        return Err(SociError::said(
            "the provided digest is of ztoc not SOCI index. Use \"soci ztoc info\" command to get \
             detailed info of ztoc",
        ));
    }
    let json = session.store().await?.bytes(&digest, DOCUMENT_LEN_MAX).await?;
    let text = json::indent(&json);
    session.output.line(String::from_utf8_lossy(&text));
    Ok(())
}

pub(in crate::soci) async fn remove(session: &Session) -> Result<(), SociError> {
    let digests = &session.arguments.positional;
    let reference = session.arguments.text("ref").filter(|it| !it.is_empty());
    let records = session.records().await?;
    let indexes: Vec<Digest> = match reference {
        Some(_) if !digests.is_empty() => {
            return Err(SociError::said(
                "please provide either index digests or image ref, but not both",
            ));
        }
        Some(reference) => {
            let (_, manifests) = manifests_of(session, reference).await?;
            let all = records.all()?.into_iter();
            let of_image = all.filter(|(_, record)| {
                record.kind == ArtifactKind::Index && manifests.contains(&record.of)
            });
            of_image.map(|(digest, _)| digest).collect()
        }
        None => {
            let mut indexes = Vec::new();
            for text in digests {
                let digest = parse_digest(text)?;
                match records.get(&digest)? {
                    Some(record) if record.kind == ArtifactKind::Index => indexes.push(digest),
                    Some(_) => {
                        let text = format!("the digest {digest} does not correspond to an index");
                        return Err(SociError::said(text));
                    }
                    None => {
                        let text = format!("the index of the digest {digest} doesn't exist");
                        return Err(SociError::said(text));
                    }
                }
            }
            indexes
        }
    };
    if indexes.is_empty() {
        return Ok(());
    }
    // Else `rebuild-db` would find them again.
    let store = session.store().await?;
    for index in &indexes {
        store.delete(index).await?;
        records.change(&[], &[*index])?;
    }
    if let (StoreKind::Containerd, Store::Containerd(client)) = (session.kind, &store) {
        release(client, &indexes).await?;
    }
    drop(std::io::stdout().flush());
    Ok(())
}
