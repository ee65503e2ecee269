use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::blob::{Priority, Want};
use crate::registry::tests::real::images;

fn pool() -> ReadPool {
    ReadPool::start(1).unwrap()
}

fn read_all(blob: &Arc<dyn Blob>) -> Vec<u8> {
    let (sender, receiver) = channel();
    let reply = Box::new(move |found| sender.send(found).unwrap());
    let range = 0..blob.size();
    blob.want(Want { range, priority: Priority::OnDemand, headroom: 0, reply });
    receiver.recv_timeout(Duration::from_secs(5)).unwrap().unwrap().bytes
}

/// A tar of a directory, as skopeo and others write them, with an odd member in front.
fn tar_of(directory: &Path, prefix: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tar = tar::Builder::new(file.reopen().unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    tar.append_data(&mut header, "x".repeat(200), std::io::empty()).unwrap();
    tar.append_dir_all(if prefix.is_empty() { "." } else { prefix }, directory).unwrap();
    tar.finish().unwrap();
    file
}

fn check(layout: &Layout) {
    let image = layout.find(None).unwrap();
    assert_eq!(layout.find(Some("fixture")).unwrap(), image);
    assert_eq!(layout.find(Some(&image.digest.to_string())).unwrap(), image);
    let raw = layout.manifest(&image.digest).unwrap();
    assert_eq!(raw.digest, image.digest);
    let manifest = spanfs_layer::oci::Manifest::parse(&raw.bytes).unwrap();
    assert!(!manifest.layers.is_empty());
    for layer in &manifest.layers {
        let blob = layout.blob(&layer.digest, layer.size).unwrap();
        assert_eq!(Digest::of(&read_all(&blob)), layer.digest);
        let error = layout.blob(&layer.digest, layer.size + 1).err().unwrap();
        assert_eq!(error.class(), Class::Corrupt, "{error}");
    }
    let absent = layout.blob_bytes(&Digest::of(b"absent"), 9).unwrap_err();
    assert_eq!(absent.class(), Class::Gone, "{absent}");
    let long = layout.blob_bytes(&manifest.config.digest, 3).unwrap_err().to_string();
    assert!(long.contains("expected at most 3 bytes"), "{long}");
    let none = layout.find(Some("other")).unwrap_err().to_string();
    assert!(none.contains("no image \"other\"; it has fixture"), "{none}");
}

#[test]
fn directory_and_archive_read_alike() {
    let plain = images().join("plain");
    check(&Layout::directory(&plain, &pool()).unwrap());
    check(&Layout::archive(tar_of(&plain, "").path(), &pool()).unwrap());
}

#[test]
fn what_is_no_layout() {
    let refuse = |found: Result<Layout, LayoutError>, needle: &str| {
        let error = found.err().unwrap().to_string();
        assert!(error.contains(needle), "{error}");
    };
    let dir = tempfile::tempdir().unwrap();
    refuse(Layout::directory(dir.path(), &pool()), "it has no oci-layout");
    refuse(Layout::directory(&dir.path().join("absent"), &pool()), "it has no oci-layout");
    std::fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    refuse(Layout::directory(dir.path(), &pool()), "oci-layout can't be read");
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    refuse(Layout::directory(dir.path(), &pool()), "found \"2.0.0\"");
    refuse(Layout::archive(&dir.path().join("absent"), &pool()), "No such file");
    refuse(Layout::archive(&dir.path().join("oci-layout"), &pool()), "no OCI image layout");
    let whole = tar_of(&images().join("plain"), "");
    let len = whole.as_file().metadata().unwrap().len();
    whole.as_file().set_len(len / 2).unwrap();
    refuse(Layout::archive(whole.path(), &pool()), "no OCI image layout");
    refuse(
        Layout::archive(tar_of(&images().join("plain"), "deep").path(), &pool()),
        "no oci-layout",
    );
}

#[test]
fn a_damaged_blob_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::open(dir.path()).unwrap();
    let digest = writer.put_bytes(b"content").unwrap();
    std::fs::write(dir.path().join(blob_path(&digest)), b"CONTENT").unwrap();
    let layout = Layout::directory(dir.path(), &pool()).unwrap();
    let error = layout.blob_bytes(&digest, 100).unwrap_err();
    assert_eq!(error.class(), Class::Corrupt, "{error}");
    assert!(error.to_string().contains(&format!("expected {digest}, found")), "{error}");
}

#[test]
fn what_is_written_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/layout");
    let writer = LayoutWriter::open(&path).unwrap();
    let document = br#"{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}}"#;
    let descriptor = Descriptor::of(media_type::MANIFEST, document);
    assert_eq!(writer.put_bytes(document).unwrap(), descriptor.digest);
    writer.list(&descriptor, None).unwrap();
    writer.list(&descriptor, Some("a")).unwrap();
    writer.list(&descriptor, Some("a")).unwrap();
    let other = Descriptor::of(media_type::MANIFEST, b"{}");
    writer.put_bytes(b"{}").unwrap();
    writer.list(&other, Some("b")).unwrap();
    writer.list(&other, None).unwrap();

    let layout = Layout::directory(&path, &pool()).unwrap();
    let ambiguous = layout.find(None).unwrap_err();
    assert!(matches!(ambiguous, LayoutError::Ambiguous { .. }), "{ambiguous}");
    assert_eq!(layout.find(Some("a")).unwrap().digest, descriptor.digest);
    assert_eq!(layout.index().unwrap().manifests.len(), 4, "each entry once");
    writer.list(&other, Some("a")).unwrap();
    assert_eq!(layout.find(Some("a")).unwrap().digest, other.digest, "the name has moved");

    let wrong = writer.put_blob(&Digest::of(b"x"), &b"y"[..]).unwrap_err();
    assert_eq!(wrong.class(), Class::Corrupt);
    let names = |dir: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let left: Vec<String> = [names(&path), names(&path.join("blobs/sha256"))].concat();
    assert!(!left.iter().any(|name| name.starts_with('.')), "nothing unfinished is left: {left:?}");

    std::fs::write(dir.path().join("new/file"), "").unwrap();
    let error = LayoutWriter::open(&dir.path().join("new")).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
}

#[test]
fn writers_of_one_index_do_not_lose_entries() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("{thread}-{number}");
                    let descriptor = Descriptor::of(media_type::MANIFEST, name.as_bytes());
                    writer.list(&descriptor, Some(&name)).unwrap();
                }
            });
        }
    });
    let layout = Layout::directory(dir.path(), &pool()).unwrap();
    assert_eq!(layout.index().unwrap().manifests.len(), 20);
}

#[test]
fn referrers_are_found_by_their_subject() {
    let dir = tempfile::tempdir().unwrap();
    let writer = LayoutWriter::open(dir.path()).unwrap();
    let subject = Digest::of(b"subject");
    let config = Digest::of(b"{}");
    let text = format!(
        r#"{{"schemaVersion":2,"artifactType":"t","config":{{"digest":"{config}","size":2}},
        "subject":{{"digest":"{subject}","size":7}}}}"#
    );
    let descriptor = Descriptor::of(media_type::MANIFEST, text.as_bytes());
    writer.put_bytes(text.as_bytes()).unwrap();
    writer.list(&descriptor, None).unwrap();
    let layout = Layout::directory(dir.path(), &pool()).unwrap();
    let digests = |artifact_type| -> Vec<Digest> {
        let found = layout.referrers(&subject, artifact_type).unwrap();
        found.into_iter().map(|it| it.digest).collect()
    };
    assert_eq!(digests(None), [descriptor.digest]);
    assert_eq!(digests(Some("t")), [descriptor.digest]);
    assert!(digests(Some("u")).is_empty());
    assert!(layout.referrers(&config, None).unwrap().is_empty());
}
