//! Every golden layer: what one pass leaves is what filling it span by span leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    fs::read(folder.join(name)).unwrap()
}

/// The tar by a builder of its own.
fn tar_of(blob: &[u8]) -> Vec<u8> {
    let tar = Arc::new(Mutex::new(Vec::new()));
    let gathered = Arc::clone(&tar);
    let sink = move |_: UncompressedOffset, bytes: &[u8]| {
        gathered.lock().extend_from_slice(bytes);
        Ok(())
    };
    let mut builder = LayerBuilder::new(BuildOptions::default(), sink).unwrap();
    builder.feed(blob).unwrap();
    builder.finish().unwrap();
    std::mem::take(&mut *tar.lock())
}

fn layer_file(root: &Path, digest: &Digest, name: &str) -> PathBuf {
    root.join("layers/sha256").join(digest.hex().to_string()).join(name)
}

/// Sum of each span by the journal's byte map.
fn sums(journal: &[u8]) -> BTreeMap<u32, u32> {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let spans = journal[64..].chunks_exact(32).filter(|record| word(record, 0) == 1);
    spans.map(|record| (word(record, 4), word(record, 8))).collect()
}

/// Fill the layer span by span elsewhere, and compare what stands on the disk.
fn assert_as_if_lazy(name: &str, root: &Path, whole: &Whole, blob: &Arc<TestBlob>) {
    let WholeToc::Lazy { layer, ztoc } = &whole.toc else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let cache = cache(elsewhere.path());
    let ztoc_digest = *layer.ztoc_digest();
    let spec = LayerSpec {
        diff_id: Some(whole.diff_id),
        blob: blob.clone(),
        ztoc_digest,
        ztoc: Arc::clone(ztoc),
    };
    let lazy = cache.layer(spec).unwrap_or_else(|error| panic!("{name}: {error}"));
    fill(&lazy, 0..lazy.len()).unwrap();
    if lazy.len() > 0 {
        wait_until("verification", || lazy.complete_file().is_some());
    }
    let both =
        |file| [root, elsewhere.path()].map(|root| fs::read(layer_file(root, blob.digest(), file)));
    for file in ["layer", "ztoc"] {
        let [ours, theirs] = both(file);
        assert!(ours.unwrap() == theirs.unwrap(), "{name}: {file}");
    }
    let [ours, theirs] = both("tail").map(|tail| tail.unwrap_or_default());
    assert!(ours == theirs, "{name}: tails of {} and {} bytes", ours.len(), theirs.len());
    let [ours, theirs] = both("journal").map(|journal| sums(&journal.unwrap()));
    assert_eq!(ours, theirs, "{name}");
    assert_eq!(ours.len(), layer.table().spans().len(), "{name}");
}

fn check(name: &str, diff_id: Digest) -> bool {
    let root = tempfile::tempdir().unwrap();
    let bytes = fixture(&format!("layers/{name}"));
    let tar = tar_of(&bytes);
    assert_eq!(Digest::of(&tar), diff_id, "{name}");
    let blob = TestBlob::new(bytes);
    let wrong = Some(Digest::of(b"wrong"));
    let error = cache(root.path()).whole(spec(blob.clone(), wrong)).err().unwrap();
    assert!(matches!(error, CacheError::Condemned { .. }), "{name}: {error}");
    assert_nothing_left(root.path());

    let found = {
        let cache = cache(root.path());
        let whole = cache.whole(spec(blob.clone(), Some(diff_id)));
        let whole = whole.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(whole.origin, Origin::Blob, "{name}");
        assert_content(&whole, &tar);
        assert_as_if_lazy(name, root.path(), &whole, &blob);
        records(&whole)
    };
    blob.fail(|_| Fault::Unreachable);
    let again = || {
        let cache = cache(root.path());
        let whole = cache.whole(spec(blob.clone(), Some(diff_id)));
        let whole = whole.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((whole.origin, whole.diff_id), (Origin::Disk, diff_id), "{name}");
        (cache, whole)
    };
    let (_, whole) = again();
    assert_content(&whole, &tar);
    let names = |records: &[Record]| -> Vec<_> {
        records.iter().map(|it| (it.name.clone(), it.kind, it.data, it.size)).collect()
    };
    assert_eq!(names(&found), names(&records(&whole)), "{name}");
    let is_lazy = matches!(whole.toc, WholeToc::Lazy { .. });
    drop(whole);
    if is_lazy {
        // Without its seal (a copied cache, say), the spans' sums vouch for every byte.
        let path = layer_file(root.path(), blob.digest(), "layer");
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let (_, whole) = again();
        let WholeToc::Lazy { layer, .. } = &whole.toc else { panic!("{name} was lazy") };
        let tar = &tar[..tar.len().min(layer.len() as usize)];
        assert!(read(layer, 0, tar.len()).unwrap() == tar, "{name}");
    }
    is_lazy
}

#[test]
fn every_golden_layer_comes_whole() {
    let layers: serde_json::Value = serde_json::from_slice(&fixture("layers/layers.json")).unwrap();
    let (mut lazy, mut never) = (0, Vec::new());
    for layer in layers.as_array().unwrap() {
        if layer["broken"] == true && layer["name"] != "mix-trail-zeros" {
            continue;
        }
        let name = layer["file"].as_str().unwrap();
        let Some(diff_id) = layer["uncompressed_sha256"].as_str() else { continue };
        match check(name, format!("sha256:{diff_id}").parse().unwrap()) {
            true => lazy += 1,
            false => never.push(name.to_owned()),
        }
    }
    for name in ["sparse-gnu", "sparse-pax", "global-header", "mix-trail-zeros", "mix-zstd."] {
        assert!(never.iter().any(|never| never.starts_with(name)), "{name} is not in {never:?}");
    }
    assert!(lazy > 40, "{lazy} layers have a zTOC, {} none", never.len());
}

#[test]
fn what_is_no_layer_is_an_error_and_leaves_nothing() {
    for name in ["short-file", "bad-checksum", "mix-trunc", "mix-badcrc"] {
        let root = tempfile::tempdir().unwrap();
        let blob = TestBlob::new(fixture(&format!("layers/{name}.tar.gz")));
        let error = cache(root.path()).whole(spec(blob, None)).err().unwrap();
        assert!(matches!(error, CacheError::Build { .. }), "{name}: {error}");
        assert_eq!(error.class(), Class::Corrupt);
        assert_nothing_left(root.path());
    }
}

/// A local file that changed is not shown: the blob is read again.
#[test]
fn a_changed_local_layer_is_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let bytes = fixture("layers/sparse-gnu.tar.gz");
    let tar = tar_of(&bytes);
    let blob = TestBlob::new(bytes);
    let whole = cache(root.path()).whole(spec(blob.clone(), None)).unwrap();
    let WholeToc::Never { content, reason, .. } = &whole.toc else { panic!("it has a zTOC") };
    assert!(reason.contains("unsupported"), "{reason}");
    let path = content.layer_path();
    // Times of a file advance by the kernel's tick.
    std::thread::sleep(Duration::from_millis(30));
    fs::write(&path, vec![7; content.len() as usize]).unwrap();
    drop(whole);
    let whole = cache(root.path()).whole(spec(blob.clone(), None)).unwrap();
    assert_eq!(whole.origin, Origin::Blob);
    assert_content(&whole, &tar);
}
