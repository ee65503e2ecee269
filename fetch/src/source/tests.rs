use super::*;
use crate::RegistryOptions;
use crate::registry::tests::real::{images, source_options};

fn check(text: &str, expected: &str) {
    match text.parse::<ImageRef>() {
        Ok(found) => assert_eq!(found.to_string(), expected, "{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "{text}"),
    }
}

#[test]
fn names() {
    check("alpine", "docker.io/library/alpine:latest");
    check("docker://localhost:5000/a:t", "localhost:5000/a:t");
    check("oci:/a/b", "oci:/a/b");
    check("oci:a:v1", "oci:a:v1");
    check("oci:a:docker.io/x:v1", "oci:a:docker.io/x:v1");
    check("oci-archive:x.tar:v1", "oci-archive:x.tar:v1");
    check("oci:", "\"oci:\" is not oci:DIR[:TAG]");
    check("oci::t", "\"oci::t\" is not oci:DIR[:TAG]");
    check("oci-archive:a:", "\"oci-archive:a:\" is not oci-archive:FILE[:TAG]");
    check("", "image reference is empty");
}

async fn resolve(image: &str, platform: &str) -> Result<ResolvedImage, SourceError> {
    let options = source_options(RegistryOptions::default());
    let image = ImageRef::Directory { path: images().join(image), tag: None };
    Source::open(&image, &options)?.resolve(&platform.parse().unwrap()).await
}

#[tokio::test]
async fn every_golden_image_resolves() {
    for image in ["plain", "plain-docker", "plain-multi", "v2-one-layer"] {
        let found = resolve(image, "linux/amd64").await.unwrap();
        assert_eq!(found.layers().len(), found.config.diff_ids().len(), "{image}");
        assert_eq!(found.descriptor.digest, Digest::of(&found.manifest_bytes));
        assert_eq!(found.manifest.config.digest, Digest::of(&found.config_bytes));
    }
    let missing = resolve("plain-multi", "plan9/mips").await.unwrap_err();
    assert!(matches!(&missing, SourceError::NoPlatform { .. }), "{missing}");
    assert!(missing.to_string().contains("no image for plan9/mips; it has linux/"), "{missing}");
}

#[tokio::test]
async fn layouts_take_pushes_and_archives_do_not() {
    let options = source_options(RegistryOptions::default());
    let dir = tempfile::tempdir().unwrap();
    LayoutWriter::open(dir.path()).unwrap();
    let image = ImageRef::Directory { path: dir.path().to_owned(), tag: Some("t".to_owned()) };
    let source = Source::open(&image, &options).unwrap();
    let content = Content::Bytes(Bytes::from_static(b"{}"));
    source.push_blob(&Digest::of(b"{}"), &content).await.unwrap();
    let wrong = source.push_blob(&Digest::of(b"other"), &content).await.unwrap_err();
    assert_eq!(wrong.class(), Class::Corrupt, "{wrong}");
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":2}},"layers":[]}}"#,
        Digest::of(b"{}")
    );
    let pushed = source.push_manifest(Some("t"), media_type::MANIFEST, text.clone().into()).await;
    let found = source.resolve(&Platform::default()).await.unwrap();
    assert_eq!(
        (found.manifest_bytes, found.descriptor.digest),
        (text.into(), pushed.unwrap().digest)
    );
    let archive = Source {
        image: ImageRef::Archive { path: "x.tar".into(), tag: None },
        place: source.place.clone(),
        nearby: None,
    };
    let refused = archive.push_blob(&Digest::of(b"{}"), &content).await.unwrap_err();
    assert!(refused.to_string().contains("use oci:DIR"), "{refused}");
}

#[tokio::test]
async fn sizes_are_held_to() {
    let options = source_options(RegistryOptions::default());
    let image = ImageRef::Directory { path: images().join("plain"), tag: None };
    let source = Source::open(&image, &options).unwrap();
    let found = source.resolve(&Platform::default()).await.unwrap();
    let mut config = found.manifest.config.clone();
    config.size += 1;
    let error = source.blob_bytes(&config, 1 << 20).await.unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    let error = source.blob_bytes(&found.manifest.config, 1).await.unwrap_err();
    assert!(error.to_string().contains("expected at most 1 bytes"), "{error}");
}

/// Documents that are near need no registry, and are believed only by their digests.
#[tokio::test]
async fn what_is_near_is_not_asked_for() {
    let mut options = RegistryOptions::default();
    options.limits.tries_max = 1;
    let options = source_options(options);
    let found = resolve("plain", "linux/amd64").await.unwrap();
    // Nobody listens there.
    let name = format!("127.0.0.1:1/a/b@{}", found.descriptor.digest);
    let source = Source::open(&name.parse().unwrap(), &options).unwrap();
    let known: Arc<[Bytes]> = [&found.manifest_bytes, &found.config_bytes].map(Bytes::clone).into();
    let all = Arc::clone(&known);
    let has = move |digest: Digest| {
        let document = all.iter().find(|bytes| Digest::of(bytes) == digest).cloned();
        Box::pin(async move { document }) as NearbyFound
    };
    let near = source.clone().near(Some(Arc::new(has)));
    let again = near.resolve(&Platform::default()).await.unwrap();
    assert_eq!(again.manifest_bytes, found.manifest_bytes);
    assert_eq!(again.descriptor.media_type, found.descriptor.media_type);
    let wrong: Nearby = Arc::new(move |_| {
        let other = known.last().cloned();
        Box::pin(async move { other })
    });
    let never: Nearby = Arc::new(|_| Box::pin(std::future::pending()));
    for nearby in [None, Some(wrong), Some(never)] {
        let refused = source.clone().near(nearby).resolve(&Platform::default()).await.unwrap_err();
        assert_eq!(refused.class(), Class::Retry, "{refused}");
    }
}
