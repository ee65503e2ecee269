//! Pages for operators, at a unix socket that only root can reach.

use std::sync::Arc;

use serde::Serialize;

use super::http::{JSON, PROMETHEUS, Page, Pages, TEXT};
use super::reload::Current;
use crate::snapshotter::Snapshotter;

const INDEX: &str = "\
/debug/layers     every layer that a snapshot shows: how it came and why, spans, front, verification
/debug/decisions  layers that were asked for lately, also those left to containerd, and why
/debug/config     settings in force
/debug/metrics    what Prometheus reads
";

/// All of them.
pub fn pages(snapshotter: Arc<Snapshotter>, settings: Current) -> Pages {
    Arc::new(move |path| match path.trim_end_matches('/') {
        "" | "/debug" => Some(page(TEXT, INDEX.to_owned())),
        "/debug/layers" => json(&snapshotter.report()),
        "/debug/decisions" => json(&snapshotter.decisions()),
        "/debug/config" => Some(page(TEXT, settings.dump())),
        "/debug/metrics" => Some(page(PROMETHEUS, snapshotter.metrics())),
        _ => None,
    })
}

fn page(kind: &'static str, text: String) -> Page {
    Page { kind, text }
}

fn json(value: &impl Serialize) -> Option<Page> {
    // Texts and numbers: there is nothing that JSON could not say.
    serde_json::to_string(value).ok().map(|text| page(JSON, text + "\n"))
}
