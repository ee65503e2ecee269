//! zTOCs made by the real peer, over layers made by real tools: every layer, whole and verified.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::testing::PATIENCE;

fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn rows(name: &str) -> Vec<serde_json::Value> {
    serde_json::from_slice(&fs::read(fixtures(name)).unwrap()).unwrap()
}

/// Its first span is empty: neither the peer's own daemon nor we serve that.
const REFUSED: &str = "mix-lead-empty.tar.gz";

/// Read a layer backwards in odd pieces, and have the whole proved.
fn check(file: &str, diff_id: &str, ztoc: &str) {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path());
    let blob = TestBlob::new(fs::read(fixtures(&format!("layers/{file}"))).unwrap());
    let ztoc: Arc<[u8]> = fs::read(fixtures(&format!("ztoc/{ztoc}"))).unwrap().into();
    let spec = LayerSpec {
        diff_id: Some(format!("sha256:{diff_id}").parse().unwrap()),
        blob: blob.clone(),
        ztoc_digest: Digest::of(&ztoc),
        ztoc,
    };
    let layer = match open(&place.works, &place.directory, spec) {
        Err(CacheError::BadZtoc { reason, .. }) if file == REFUSED => {
            return assert!(reason.contains("non-monotonic at span 0"), "{reason}");
        }
        layer => layer.unwrap_or_else(|error| panic!("{file}: {error}")),
    };
    let mut at = layer.len();
    while at > 0 {
        let len = at.min(70_001);
        at -= len;
        read(&layer, at, len as usize).unwrap_or_else(|error| panic!("{file} at {at}: {error}"));
    }
    assert_eq!(blob.wants(), layer.table().spans().len(), "{file}");
    let started = std::time::Instant::now();
    while layer.complete_file().is_none() {
        let status = layer.status();
        assert!(started.elapsed() < PATIENCE, "{file} is not verified: {status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn every_golden_layer_is_read_and_verified() {
    let layers = rows("layers/layers.json");
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or("").to_owned();
    let mut checked = 0;
    for row in rows("ztoc/ztocs.json") {
        let (name, ztoc) = (text(&row, "layer"), text(&row, "ztoc"));
        let Some(layer) = layers.iter().find(|it| text(it, "file") == name) else { continue };
        if ztoc.is_empty() || row.get("error").is_some() || layer.get("broken").is_some() {
            continue;
        }
        check(&text(layer, "file"), &text(layer, "uncompressed_sha256"), &ztoc);
        checked += 1;
    }
    assert!(checked > 20, "only {checked} zTOCs were found");
}
