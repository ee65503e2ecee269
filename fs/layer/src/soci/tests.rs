use super::*;
use crate::fixtures::{bytes, json, path};
use crate::oci::{Document, ImageConfig, Platform};
use crate::{Digest, SpanTable, Ztoc};
use std::collections::BTreeMap;
use std::format;
use std::string::ToString;
use std::vec::Vec;

const TOOL: &str = "AWS SOCI CLI v0.2";

fn blob(layout: &str, digest: &Digest) -> Vec<u8> {
    bytes(&format!("images/{layout}/blobs/sha256/{}", digest.hex()))
}

fn root(layout: &str) -> Descriptor {
    Index::parse(&bytes(&format!("images/{layout}/index.json"))).unwrap().manifests.remove(0)
}

/// The images of a layout with their platforms, as an index.
fn images(layout: &str) -> Index {
    let root = root(layout);
    match Document::parse(&root.media_type, &blob(layout, &root.digest)).unwrap() {
        Document::Index(index) => index,
        Document::Manifest(manifest) => {
            let config = ImageConfig::parse(&blob(layout, &manifest.config.digest)).unwrap();
            index_of_one(&root, config.platform)
        }
    }
}

struct Settings {
    size_min: u64,
    span_size: u64,
    xattr_optimization: bool,
    prefetch: &'static [&'static str],
}

const USUAL: Settings =
    Settings { size_min: 0, span_size: 65_536, xattr_optimization: false, prefetch: &[] };

/// Index an image as a builder would that finds the zTOCs of `converted`.
fn build_v2(image: &Manifest, converted: &str, settings: &Settings) -> Option<Vec<u8>> {
    let ztocs = ztocs(converted);
    let wanted =
        |layer: &&Descriptor| matches!(ZtocRule::of(layer, settings.size_min), ZtocRule::Build(_));
    let layers: Vec<&Descriptor> = image.layers.iter().filter(wanted).collect();
    let decoded: Vec<(Ztoc, SpanTable)> = layers
        .iter()
        .map(|layer| &ztocs[&layer.digest])
        .map(|encoded| (Ztoc::decode(encoded).unwrap(), SpanTable::from_ztoc(encoded).unwrap()))
        .collect();
    let searched: Vec<PrefetchLayer<'_>> = layers
        .iter()
        .zip(&decoded)
        .map(|(layer, (ztoc, table))| PrefetchLayer {
            digest: layer.digest,
            records: &ztoc.records,
            table,
        })
        .collect();
    let (prefetch, missing) = prefetch_files(&searched, settings.prefetch);
    assert!(missing.is_empty(), "{missing:?}");
    let entries: Vec<ZtocEntry<'_>> = layers
        .iter()
        .zip(&decoded)
        .map(|(layer, (ztoc, _))| ZtocEntry {
            digest: Digest::of(&ztocs[&layer.digest]),
            size: ztocs[&layer.digest].len() as u64,
            layer,
            span_size: settings.span_size,
            disable_xattrs: settings.xattr_optimization && needs_no_xattrs(&ztoc.records),
        })
        .collect();
    let parts = IndexParts { ztocs: &entries, prefetch: &prefetch, build_tool: TOOL };
    SociIndex::v2(&parts).ok().map(|index| index.to_canonical())
}

/// The zTOCs of a converted layout by layer.
fn ztocs(layout: &str) -> BTreeMap<Digest, Vec<u8>> {
    let mut ztocs = BTreeMap::new();
    for entry in images(layout).manifests {
        let Ok(index) = SociIndex::parse(&blob(layout, &entry.digest)) else { continue };
        for ztoc in index.manifest.layers.iter().filter(|e| e.media_type == ZTOC_MEDIA_TYPE) {
            let layer = ztoc.annotations[LAYER_DIGEST].parse().unwrap();
            ztocs.insert(layer, blob(layout, &ztoc.digest));
        }
    }
    ztocs
}

fn check(source: &str, converted: &str, settings: &Settings) {
    let index = images(source);
    let wanted = root(converted);
    let mut built = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.artifact_type.is_empty()) {
        let manifest = blob(source, &entry.digest);
        let soci = build_v2(&Manifest::parse(&manifest).unwrap(), converted, settings).unwrap();
        built.push((entry.digest, manifest, entry.platform.clone().unwrap(), soci));
    }
    let indexed: Vec<Indexed<'_>> = built
        .iter()
        .map(|(image, manifest, platform, soci_index)| Indexed {
            image: *image,
            manifest,
            platform: platform.clone(),
            soci_index,
        })
        .collect();
    let result = convert(&index, &indexed).unwrap();
    for manifest in result.manifests.iter().chain(built.iter().map(|(.., soci)| soci)) {
        assert!(blob(converted, &Digest::of(manifest)) == *manifest, "{converted}");
    }
    let expected = blob(converted, &wanted.digest);
    assert_eq!(std::str::from_utf8(&result.index), std::str::from_utf8(&expected), "{converted}");
    assert_eq!(Digest::of(&result.index), wanted.digest, "{converted}");
}

#[test]
fn conversions_give_the_bytes_of_the_peer() {
    check("plain", "v2", &USUAL);
    check("plain-multi", "v2-multi", &USUAL);
    check("plain-docker", "v2-docker", &USUAL);
    check("plain", "v2-one-layer", &Settings { size_min: 50_000, ..USUAL });
    check("plain", "v2-xattr", &Settings { xattr_optimization: true, ..USUAL });
    let prefetch = &["/app/data.txt", "/app/second.bin"];
    check("plain", "v2-prefetch", &Settings { prefetch, ..USUAL });
    check("v2", "v2-twice", &USUAL);
    check("v2-multi", "v2-multi", &USUAL);
}

#[test]
fn an_image_of_small_layers_has_no_index() {
    let root = root("plain");
    let image = Manifest::parse(&blob("plain", &root.digest)).unwrap();
    let settings = Settings { size_min: 10 << 20, ..USUAL };
    assert_eq!(build_v2(&image, "v2", &settings), None);
    let ZtocRule::Skip(reason) = ZtocRule::of(&image.layers[0], 10 << 20) else { panic!() };
    let output = bytes("images/v2-too-small.convert.txt");
    assert!(std::str::from_utf8(&output).unwrap().contains(&reason), "{reason}");
}

#[test]
fn what_was_not_indexed_is_kept() {
    let mut source = images("plain-multi");
    let mut attestation = Descriptor::of(media_type::MANIFEST, b"attestation");
    attestation.platform = Some(Platform::new("unknown", "unknown", ""));
    let reference = "vnd.docker.reference.digest".to_string();
    attestation.annotations.insert(reference, source.manifests[0].digest.to_string());
    source.manifests.push(attestation);
    let image = source.manifests[0].clone();
    let manifest = blob("plain-multi", &image.digest);
    let convert_with = |source: &Index, image, soci_index: &[u8]| {
        let platform = Platform::new("linux", "amd64", "");
        let indexed = Indexed { image, manifest: &manifest, platform, soci_index };
        convert(source, &[indexed])
    };
    let first = convert_with(&source, image.digest, b"{}").unwrap();
    let index = Index::parse(&first.index).unwrap();
    assert_eq!(index.manifests.len(), 4);
    assert_eq!(index.manifests[1..3], source.manifests[1..3]);
    // Another SOCI index takes the place of the first.
    let again = convert_with(&index, index.manifests[0].digest, b"{ }").unwrap();
    let again = Index::parse(&again.index).unwrap();
    assert_eq!(again.manifests.len(), 4);
    assert_eq!(again.manifests[3].digest, Digest::of(b"{ }"));
    assert_eq!(again.manifests[1..3], source.manifests[1..3]);
    let missing = convert_with(&source, Digest::of(b"elsewhere"), b"{}");
    assert_eq!(missing, Err(ConvertError::NotListed { image: Digest::of(b"elsewhere") }));
}

#[test]
fn v1_indexes_are_built_to_the_bytes_of_the_peer() {
    let layout = "images/v1/blobs/sha256";
    let mut compared = 0;
    for row in json("images/v1/indexes.json").as_array().unwrap() {
        let digest: Digest = row["index"].as_str().unwrap().parse().unwrap();
        let file = format!("{layout}/{}", digest.hex());
        if !path(&file).exists() {
            continue;
        }
        let expected = bytes(&file);
        let parsed = SociIndex::parse(&expected).unwrap();
        assert_eq!(parsed.version, Version::V1);
        assert!(parsed.to_canonical() == expected);
        let image = root("plain");
        let manifest = Manifest::parse(&blob("plain", &image.digest)).unwrap();
        let has_xattr_mark = |ztoc: &Descriptor| SociIndex::disables_xattrs(ztoc);
        let entries: Vec<ZtocEntry<'_>> = manifest
            .layers
            .iter()
            .filter_map(|layer| parsed.ztoc(&layer.digest).map(|ztoc| (layer, ztoc)))
            .map(|(layer, ztoc)| ZtocEntry {
                digest: ztoc.digest,
                size: ztoc.size,
                layer,
                span_size: ztoc.annotations[SPAN_SIZE].parse().unwrap(),
                disable_xattrs: has_xattr_mark(ztoc),
            })
            .collect();
        let artifact = |layer: &Descriptor| {
            let entry = parsed.prefetch(&layer.digest)?;
            let artifact = bytes(&format!("{layout}/{}", entry.digest.hex()));
            Some((layer.digest, Prefetch::parse(&artifact).unwrap()))
        };
        let prefetch: Vec<_> = manifest.layers.iter().filter_map(artifact).collect();
        let parts = IndexParts { ztocs: &entries, prefetch: &prefetch, build_tool: TOOL };
        assert!(SociIndex::v1(&parts, &image).unwrap().to_canonical() == expected);
        compared += 1;
    }
    assert!(compared >= 4, "only {compared} indexes were compared");
}

#[test]
fn indexes_are_found() {
    let converted = images("v2");
    let image = Manifest::parse(&blob("v2", &converted.manifests[0].digest)).unwrap();
    let named = index_digest(&image).unwrap();
    assert_eq!(named, converted.manifests[1].digest.to_string());
    let plain = Manifest::parse(&blob("plain", &root("plain").digest)).unwrap();
    assert_eq!(index_digest(&plain), None);
    let referrers = Index::parse(&bytes("images/v1/referrers-fallback-tag.json")).unwrap();
    assert_eq!(first_v1_referrer(&referrers), referrers.manifests.first());
    assert!(matches!(
        SociIndex::parse(&blob("plain", &root("plain").digest)),
        Err(IndexError::UnknownVersion { .. })
    ));
}

#[test]
fn prefetch_runs_are_merged_and_read_back() {
    let run = |first, last| SpanRun { first, last, priority: 0 };
    let merged = Prefetch::new(Vec::from([run(9, 9), run(3, 4), run(5, 5), run(3, 3)])).unwrap();
    assert_eq!(merged.runs(), [run(3, 5), run(9, 9)]);
    assert_eq!(Prefetch::parse(&merged.encode()), Ok(merged));
    assert_eq!(Prefetch::new(Vec::new()), None);
    let with_priority =
        br#"{"version":"1.0","prefetch_spans":[{"start_span":9,"end_span":9,"priority":1}]}"#;
    assert_eq!(Prefetch::parse(with_priority).unwrap().encode(), with_priority);
    for (json, error) in [
        (r#"{"version":"1.0","prefetch_spans":[]}"#, PrefetchError::Empty),
        (r#"{"version":"2"}"#, PrefetchError::Version { found: "2".into() }),
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}"#,
            PrefetchError::Run { first: 2, last: 1 },
        ),
    ] {
        assert_eq!(Prefetch::parse(json.as_bytes()), Err(error), "{json}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]

    /// Damaged documents give an error or a value with one canonical form.
    #[test]
    fn damaged_documents_never_panic(
        which in 0_usize..5,
        damage in proptest::collection::vec((0_usize..4096, proptest::num::u8::ANY), 1..4),
        cut in 0_usize..4096,
    ) {
        let converted = root("v2-prefetch").digest;
        let index = blob("v2-prefetch", &converted);
        let listed = Index::parse(&index).unwrap().manifests;
        let image = blob("v2-prefetch", &listed[0].digest);
        let soci = blob("v2-prefetch", &listed[1].digest);
        let config = Manifest::parse(&image).unwrap().config.digest;
        let prefetch = SociIndex::parse(&soci).unwrap().manifest.layers.pop().unwrap().digest;
        let documents =
            [index, image, soci, blob("v2-prefetch", &config), blob("v2-prefetch", &prefetch)];
        let mut json = documents[which].clone();
        for (at, byte) in damage {
            let at = at % json.len();
            json[at] ^= byte & 0x1f;
        }
        for json in [&json[..], &json[..cut % json.len()]] {
            match Document::parse("", json) {
                Ok(Document::Index(index)) => {
                    let canonical = index.to_canonical();
                    let again = Index::parse(&canonical).unwrap().to_canonical();
                    proptest::prop_assert_eq!(again, canonical);
                }
                Ok(Document::Manifest(manifest)) => {
                    let canonical = manifest.to_canonical();
                    let again = Manifest::parse(&canonical).unwrap().to_canonical();
                    proptest::prop_assert_eq!(again, canonical);
                }
                Err(_) => {}
            }
            let _ = SociIndex::parse(json);
            let _ = ImageConfig::parse(json);
            if let Ok(prefetch) = Prefetch::parse(json) {
                proptest::prop_assert_eq!(Prefetch::parse(&prefetch.encode()), Ok(prefetch));
            }
        }
    }
}
