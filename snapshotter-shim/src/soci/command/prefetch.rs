//! `soci prefetch`: list and print prefetch artifacts.

use std::time::SystemTime;

use serde::Serialize;
use spanfs_layer::Digest;
use spanfs_layer::soci::{Prefetch, SpanRun};

use super::super::artifacts::{Artifact, ArtifactKind};
use super::super::output::SECONDS_LEN;
use super::super::session::Session;
use super::super::store::{DOCUMENT_LEN_MAX, Store};
use super::super::{SociError, json, table};
use super::index::{age, digest_argument, recorded};
use crate::daemon::log::rfc3339;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    digest: String,
    layer_digest: String,
    /// -1 if the artifact can't be read.
    total_spans: i64,
    created_at: String,
}

pub(in crate::soci) async fn list(session: &Session) -> Result<(), SociError> {
    let mut found = session.records().await?.all()?;
    found.retain(|(_, record)| record.kind == ArtifactKind::Prefetch);
    found.sort_by_key(|(_, record)| std::cmp::Reverse(record.created));
    let store = match found.is_empty() {
        true => None,
        false => Some(session.store().await?),
    };
    let mut artifacts = Vec::new();
    for (digest, record) in found {
        let spans = match &store {
            Some(store) => read(store, &digest).await.ok().map(|artifact| total(&artifact)),
            None => None,
        };
        artifacts.push((digest, record, spans));
    }
    if session.arguments.is_set("json") {
        let rows: Vec<Row> = artifacts
            .iter()
            .map(|(digest, record, spans)| Row {
                digest: digest.to_string(),
                layer_digest: record.of.clone(),
                total_spans: spans.and_then(|spans| i64::try_from(spans).ok()).unwrap_or(-1),
                created_at: rfc3339(record.created()),
            })
            .collect();
        let text = if rows.is_empty() { "null".to_owned() } else { json::pretty(&rows) };
        session.output.line(text);
        return Ok(());
    }
    let mut rows = vec![["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"].map(str::to_owned)];
    let now = SystemTime::now();
    rows.extend(artifacts.iter().map(|(digest, record, spans)| {
        let spans = spans.map_or("N/A".to_owned(), |spans| spans.to_string());
        [digest.to_string(), record.of.clone(), spans, age(record, now)]
    }));
    table::lines(&rows).iter().for_each(|line| session.output.line(line));
    Ok(())
}

async fn read(store: &Store, digest: &Digest) -> Result<Prefetch, SociError> {
    let bytes = store.bytes(digest, DOCUMENT_LEN_MAX).await?;
    Prefetch::parse(&bytes)
        .map_err(|error| SociError::said(format!("prefetch artifact {digest}: {error}")))
}

fn total(artifact: &Prefetch) -> u64 {
    artifact.runs().iter().map(len).sum()
}

fn len(run: &SpanRun) -> u64 {
    u64::from(run.last) + 1 - u64::from(run.first)
}

pub(in crate::soci) async fn info(session: &Session) -> Result<(), SociError> {
    let digest = digest_argument(session)?;
    let record = recorded(session, &digest).await?;
    if record.kind != ArtifactKind::Prefetch {
        let text = format!("the provided digest {digest} is not a prefetch artifact");
        return Err(SociError::said(text));
    }
    let store = session.store().await?;
    let artifact = read(&store, &digest).await?;
    session.output.line(text(&digest, &record, &artifact));
    if session.arguments.is_set("json") {
        let bytes = store.bytes(&digest, DOCUMENT_LEN_MAX).await?;
        session.output.line(String::from_utf8_lossy(&bytes));
    }
    Ok(())
}

fn text(digest: &Digest, record: &Artifact, artifact: &Prefetch) -> String {
    let created = rfc3339(record.created()).replace('T', " ");
    let created = created.get(..SECONDS_LEN).unwrap_or_default();
    let mut lines = vec![
        format!("Digest:        {digest}"),
        "Version:       1.0".to_owned(),
        format!("Span Ranges:   {}", artifact.runs().len()),
        format!("Layer Digest:  {}", record.of),
        format!("Size:          {} bytes", record.size),
        format!("Created:       {created}"),
        String::new(),
        "Prefetch Spans:".to_owned(),
    ];
    for (number, run) in artifact.runs().iter().enumerate() {
        let SpanRun { first, last, priority } = run;
        let count = len(run);
        lines.push(format!(
            "  [{number}] StartSpan: {first}, EndSpan: {last} (covers {count} spans)"
        ));
        if *priority != 0 {
            lines.push(format!("      Priority: {priority}"));
        }
    }
    lines.push(String::new());
    lines.push(format!("Total spans to prefetch: {}", total(artifact)));
    lines.join("\n")
}
