//! `soci ztoc list` and `info`.

use std::collections::HashSet;

use serde::Serialize;
use spanfs_layer::soci::{Prefetch, SociIndex};
use spanfs_layer::ztoc::Compression;
use spanfs_layer::ztoc::zinfo::{GzipPoints, TarCut};
use spanfs_layer::{Digest, Kind, Record, SpanTable, Ztoc};

use super::super::artifacts::{Artifact, ArtifactKind};
use super::super::session::Session;
use super::super::store::{DOCUMENT_LEN_MAX, ZTOC_LEN_MAX};
use super::super::{SociError, json, table};
use super::index::{digest_argument, manifests_of, recorded};

pub(in crate::soci) async fn list(session: &Session) -> Result<(), SociError> {
    let arguments = &session.arguments;
    let given = |name| arguments.text(name).filter(|it| !it.is_empty());
    let all = session.records().await?.all()?;
    let mut ztocs: Vec<(Digest, Artifact)> = match given("image-ref") {
        Some(reference) => of_image(session, reference, &all).await?,
        None => {
            let ztocs = all.into_iter().filter(|(_, record)| record.kind == ArtifactKind::Ztoc);
            ztocs.collect()
        }
    };
    if let Some(wanted) = given("ztoc-digest") {
        ztocs.retain(|(digest, _)| digest.to_string() == wanted);
        if ztocs.is_empty() {
            return Err(SociError::said(
                "the specified ztoc doesn't exist or is not associated with the specified image",
            ));
        }
    }
    if arguments.is_set("quiet") {
        ztocs.iter().for_each(|(digest, _)| session.output.line(digest));
        return Ok(());
    }
    let mut rows = vec![["DIGEST", "SIZE", "LAYER DIGEST"].map(str::to_owned)];
    let row = |(digest, record): &(Digest, Artifact)| {
        [digest.to_string(), record.size.to_string(), record.of.clone()]
    };
    rows.extend(ztocs.iter().map(row));
    table::lines(&rows).iter().for_each(|line| session.output.line(line));
    Ok(())
}

/// zTOCs that the indexes of an image name, in their order.
async fn of_image(
    session: &Session,
    reference: &str,
    all: &[(Digest, Artifact)],
) -> Result<Vec<(Digest, Artifact)>, SociError> {
    let (_, manifests) = manifests_of(session, reference).await?;
    let store = session.store().await?;
    let mut known = HashSet::new();
    let mut found = Vec::new();
    let is_index =
        |record: &Artifact| record.kind == ArtifactKind::Index && manifests.contains(&record.of);
    for (digest, _) in all.iter().filter(|(_, record)| is_index(record)) {
        let bytes = store.bytes(digest, DOCUMENT_LEN_MAX).await?;
        let index = SociIndex::parse(&bytes)
            .map_err(|error| SociError::said(format!("index {digest}: {error}")))?;
        for entry in &index.manifest.layers {
            let ztoc = all.iter().find(|(digest, record)| {
                *digest == entry.digest && record.kind == ArtifactKind::Ztoc
            });
            found.extend(ztoc.filter(|_| known.insert(entry.digest)).cloned());
        }
    }
    Ok(found)
}

#[derive(Serialize)]
struct Info<'a> {
    version: &'a str,
    build_tool: &'a str,
    size: usize,
    span_size: i64,
    num_spans: usize,
    num_files: usize,
    num_multi_span_files: usize,
    files: Vec<File>,
}

#[derive(Serialize)]
struct File {
    filename: String,
    offset: u64,
    size: u64,
    r#type: &'static str,
    start_span: u32,
    end_span: u32,
}

pub(in crate::soci) async fn info(session: &Session) -> Result<(), SociError> {
    let digest = digest_argument(session)?;
    if recorded(session, &digest).await?.kind == ArtifactKind::Index {
        return Err(SociError::said(
            "the provided digest belongs to a SOCI index. Use `soci index info` to get the \
             detailed information about it",
        ));
    }
    let bytes = session.store().await?.bytes(&digest, ZTOC_LEN_MAX).await?;
    let failed = |error: String| SociError::said(format!("ztoc {digest}: {error}"));
    let ztoc = Ztoc::decode(&bytes).map_err(|it| failed(it.to_string()))?;
    let spans = SpanTable::from_ztoc(&bytes).map_err(|it| failed(it.to_string()))?;
    let span_size = match ztoc.compression {
        Compression::Gzip => GzipPoints::new(&ztoc.checkpoints).map(|points| points.span_size),
        Compression::Uncompressed => TarCut::new(&ztoc.checkpoints)
            .map(|cut| i64::try_from(cut.span_size).unwrap_or(i64::MAX)),
        Compression::Zstd => Ok(0),
    };
    let files: Vec<File> = ztoc.records.iter().map(|record| file(record, &spans)).collect();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let info = Info {
        version: &text(&ztoc.version),
        build_tool: &text(&ztoc.build_tool),
        size: bytes.len(),
        span_size: span_size.map_err(|it| failed(it.to_owned()))?,
        num_spans: ztoc.span_digests.len(),
        num_files: files.len(),
        num_multi_span_files: files.iter().filter(|it| it.start_span != it.end_span).count(),
        files,
    };
    session.output.line(json::pretty(&info));
    Ok(())
}

fn file(record: &Record, spans: &SpanTable) -> File {
    let run = Prefetch::run_of(record, spans);
    File {
        filename: String::from_utf8_lossy(&record.name).into_owned(),
        offset: record.data.0,
        size: record.size,
        r#type: match record.kind {
            Kind::Regular => "reg",
            Kind::Directory => "dir",
            Kind::Symlink => "symlink",
            Kind::Hardlink => "hardlink",
            Kind::CharDevice => "char",
            Kind::BlockDevice => "block",
            Kind::Fifo => "fifo",
        },
        start_span: run.map_or(0, |run| run.first),
        end_span: run.map_or(0, |run| run.last),
    }
}
