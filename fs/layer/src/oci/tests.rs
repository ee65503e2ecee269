use super::*;
use std::string::ToString;

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

#[test]
fn platforms_are_normalised() {
    for (text, normal) in [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("Linux/ARM64/v8", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/i386", "linux/386"),
    ] {
        assert_eq!(platform(text).to_string(), normal, "{text}");
    }
    for text in ["", "/", "linux/", "linux/amd64/v1/x", "linux amd64", "linux//v8"] {
        assert!(text.parse::<Platform>().is_err(), "{text:?}");
    }
}

#[test]
fn the_best_image_is_selected() {
    fn check(images: &[&str], wanted: &str, selected: Option<usize>) {
        let mut index = Index::parse(b"{}").unwrap();
        for (number, image) in images.iter().enumerate() {
            let mut entry = Descriptor::new(media_type::MANIFEST, Digest::of(b""), number as u64);
            entry.platform = (!image.is_empty()).then(|| platform(image));
            index.manifests.push(entry);
        }
        let found = index.select(&platform(wanted)).map(|entry| entry.size as usize);
        assert_eq!(found, selected, "{wanted} of {images:?}");
    }
    check(&["linux/arm64", "linux/amd64"], "linux/amd64", Some(1));
    check(&["linux/arm64/v8"], "linux/arm64", Some(0));
    check(&["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", Some(1));
    check(&["linux/arm/v6", "linux/arm/v5"], "linux/arm/v7", Some(0));
    check(&["linux/arm/v7"], "linux/arm/v6", None);
    check(&["linux/amd64/v3"], "linux/amd64", None);
    check(&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some(1));
    check(&["linux/386", "linux/amd64"], "linux/amd64", Some(1));
    check(&["linux/386"], "linux/amd64", Some(0));
    check(&["linux/arm/v7"], "linux/arm64", Some(0));
    check(&["windows/amd64"], "linux/amd64", None);
    check(&["unknown/unknown"], "linux/amd64", None);
    check(&[""], "linux/amd64", Some(0));
    check(&["", ""], "linux/amd64", None);
    check(&[], "linux/amd64", None);
}

#[test]
fn artifacts_are_not_selected() {
    let json = crate::fixtures::bytes("images/plain/index.json");
    let mut index = Index::parse(&json).unwrap();
    assert!(index.select(&Platform::host()).is_some());
    index.manifests[0].artifact_type = "application/vnd.amazon.soci.index.v2+json".into();
    assert_eq!(index.select(&Platform::host()), None);
}

#[test]
fn layers_are_told_by_media_type() {
    use LayerCompression::{Gzip, Uncompressed, Unknown, Zstd};
    let tar = |compression, distributable| LayerType::Tar { compression, distributable };
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", tar(Uncompressed, true)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", tar(Gzip, true)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", tar(Zstd, true)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", tar(Gzip, false)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", tar(Uncompressed, false)),
        ("application/vnd.docker.image.rootfs.diff.tar", tar(Unknown, true)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", tar(Gzip, true)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", tar(Zstd, true)),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", tar(Gzip, false)),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", LayerType::Encrypted),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", LayerType::Encrypted),
        ("application/vnd.erofs.layer.v1", LayerType::Erofs),
        ("application/vnd.oci.empty.v1+json", LayerType::Other),
        ("application/vnd.oci.image.layer.v1.tar+br", LayerType::Other),
        ("application/vnd.oci.image.layer.v1.tarball", LayerType::Other),
        ("", LayerType::Other),
    ] {
        assert_eq!(LayerType::of(media_type), expected, "{media_type}");
    }
}

#[test]
fn a_document_is_one_thing_only() {
    let digest = Digest::of(b"{}");
    let config = std::format!(r#""config":{{"mediaType":"c","digest":"{digest}","size":2}}"#);
    let parse = |hint, json: &str| Document::parse(hint, json.as_bytes());
    let manifest = std::format!("{{{config},\"layers\":null}}");
    assert!(matches!(parse("", &manifest), Ok(Document::Manifest(_))));
    assert!(matches!(parse(media_type::INDEX, &manifest), Err(OciError::Ambiguous { .. })));
    assert!(matches!(parse("", r#"{"manifests":[]}"#), Ok(Document::Index(_))));
    let hint = media_type::DOCKER_MANIFEST;
    assert!(matches!(parse(hint, r#"{"manifests":[]}"#), Err(OciError::Ambiguous { .. })));
    let both = std::format!("{{{config},\"manifests\":[]}}");
    assert!(matches!(parse("", &both), Err(OciError::Ambiguous { .. })));
    assert!(matches!(parse("", r#"{"schemaVersion":1}"#), Err(OciError::Ambiguous { .. })));
    assert!(matches!(parse("", "[]"), Err(OciError::Json { .. })));
}

#[test]
fn unknown_fields_and_odd_text_survive() {
    let json = concat!(
        r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"#,
        r#""sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"#,
        r#""later":[1,-2,null,true,{"a":"b"}]},"layers":[],"annotations":{"#,
        r#""html":"\u003ca\u003e\u0026","line":"\u2028\n\t\b\f\r\u0001\"\\/é"},"z":{"x":1.5}}"#,
    );
    let manifest = Manifest::parse(json.as_bytes()).unwrap();
    assert_eq!(std::str::from_utf8(&manifest.to_canonical()).unwrap(), json);
}

#[test]
fn configs_are_read() {
    let config = ImageConfig::parse(
        br#"{"architecture":"arm64","os":"linux","variant":"v8","config":{"Entrypoint":null,
        "Cmd":["/bin/sh","-c"],"Env":["A=b"],"WorkingDir":"/w","User":"1:2","Labels":{}},
        "rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#,
    )
    .unwrap();
    assert_eq!(config.platform.to_string(), "linux/arm64/v8");
    assert_eq!(config.command().collect::<Vec<_>>(), ["/bin/sh", "-c"]);
    assert_eq!(config.config.user, "1:2");
    assert_eq!(ImageConfig::parse(br#"{"config":null}"#), Ok(ImageConfig::default()));
}
