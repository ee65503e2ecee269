//! Blobs, images and leases of a real containerd.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;
use spanfs_snapshotter::containerd::{
    Client, ClientError, ClientOptions, Fault, GC_REF_CONTENT, ImageRecord, Written,
};

use crate::containerd::Containerd;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}

#[test]
fn blobs_come_back_as_they_were_written() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(async {
        let (version, _) = client.version().await.unwrap();
        assert!(version.contains('.'), "{version}");
        let lease = client.leases().create("test", Duration::from_secs(600)).await.unwrap();
        let content = lease.client().unwrap().content();
        for len in [0, 1, 1 << 20, (5 << 20) + 3] {
            let bytes = pattern(len);
            let label = labels(&[("l", "1")]);
            let (digest, written) = content.put(&bytes, &label).await.unwrap();
            assert_eq!((digest, written), (Digest::of(&bytes), Written::New), "{len}");
            let again = content.put(&bytes, &labels(&[("m", "2")])).await.unwrap();
            assert_eq!(again, (digest, Written::Present));
            let info = content.info(&digest).await.unwrap().unwrap();
            assert_eq!(info.size, len as u64);
            assert_eq!(info.labels, labels(&[("l", "1"), ("m", "2")]));
            assert_eq!(content.bytes(&digest, len as u64).await.unwrap(), bytes);
            for range in [0..0, 0..len, len / 3..len / 2, len..len] {
                let found = content.range(&digest, range.start as u64..range.end as u64);
                assert_eq!(found.await.unwrap(), bytes[range.clone()], "{range:?}");
            }
            let descriptor = Descriptor::of("x", &bytes);
            let mut reader = content.reader(&descriptor).await.unwrap();
            let read = move || {
                let mut found = Vec::new();
                reader.read_to_end(&mut found).map(|_| found)
            };
            assert_eq!(tokio::task::spawn_blocking(read).await.unwrap().unwrap(), bytes);
        }
        assert_eq!(content.list(&[]).await.unwrap().len(), 4);
        assert_eq!(content.list(&["labels.m==2", "size==7"]).await.unwrap().len(), 4);
        assert_eq!(content.list(&["labels.m==3"]).await.unwrap(), []);
        lease.end(true).await.unwrap();
        assert_eq!(content.list(&[]).await.unwrap(), [], "nothing else kept them");
    });
}

#[test]
fn what_is_wrong_is_refused() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(async {
        let content = client.content();
        let digest = Digest::of(b"promised");
        assert_eq!(content.info(&digest).await.unwrap(), None);
        let error = content.bytes(&digest, 100).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert!(!content.delete(&digest).await.unwrap());
        // Other bytes than promised.
        let mut writer = content.writer(&digest, 8).await.unwrap().unwrap();
        writer.write(b"anything").await.unwrap();
        let error = writer.commit(&BTreeMap::new()).await.unwrap_err();
        assert_eq!(error.fault(), Some(Fault::FailedPrecondition), "{error}");
        // What the failed writer left is no harm to the next one.
        let mut writer = content.writer(&digest, 8).await.unwrap().unwrap();
        writer.write(b"pro").await.unwrap();
        drop(writer);
        content.put(b"promised", &BTreeMap::new()).await.unwrap();
        let error = content.bytes(&digest, 7).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { found: 8, max: 7, .. }), "{error}");
        let error = content.range(&digest, 4..12).await.unwrap_err();
        assert!(error.to_string().contains("expected"), "{error}");
        assert!(content.delete(&digest).await.unwrap());
        assert!(client.with_namespace("a\nb").is_err());
    });
}

#[test]
fn images_and_their_labels_keep_content() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(async {
        let (content, images) = (client.content(), client.images());
        let error = images.get("a/b:1").await.unwrap_err();
        assert_eq!(error.to_string(), "image \"a/b:1\": not found");
        let lease = client.leases().create("work", Duration::from_secs(600)).await.unwrap();
        let under = lease.client().unwrap().content();
        let (child, _) = under.put(b"child", &BTreeMap::new()).await.unwrap();
        let key = format!("{GC_REF_CONTENT}.0");
        let kept = labels(&[(&key, &child.to_string())]);
        let (target, _) = under.put(b"target", &kept).await.unwrap();
        let mut image = ImageRecord {
            name: "a/b:1".to_owned(),
            target: Descriptor::new("text/plain", target, 6),
            labels: labels(&[("x", "y")]),
        };
        images.put(&image).await.unwrap();
        assert_eq!(images.create(&image).await.unwrap_err().fault(), Some(Fault::AlreadyExists));
        lease.end(true).await.unwrap();
        assert_eq!(content.list(&[]).await.unwrap().len(), 2);
        image.labels.insert("z".to_owned(), "1".to_owned());
        images.update(&image, &["labels.z"]).await.unwrap();
        assert_eq!(images.get("a/b:1").await.unwrap(), image);
        let other = client.with_namespace("other").unwrap();
        assert_eq!(other.images().list(&[]).await.unwrap(), []);
        assert_eq!(images.list(&["name==a/b:1"]).await.unwrap(), [image]);
        assert!(images.delete("a/b:1", true).await.unwrap());
        assert!(!images.delete("a/b:1", true).await.unwrap());
        assert_eq!(content.list(&[]).await.unwrap(), []);
        assert_eq!(client.leases().list().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn two_writers_of_one_blob_both_succeed() {
    let Some(containerd) = Containerd::start() else { return };
    let client = containerd.client();
    containerd.runtime.block_on(async {
        let bytes = pattern(3 << 20);
        let writers = (0..4).map(|_| {
            let (content, bytes) = (client.content(), bytes.clone());
            tokio::spawn(async move { content.put(&bytes, &BTreeMap::new()).await.unwrap().0 })
        });
        for writer in writers.collect::<Vec<_>>() {
            assert_eq!(writer.await.unwrap(), Digest::of(&bytes));
        }
    });
}

#[test]
fn nobody_listening_is_said_in_time() {
    let scratch = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = ClientOptions {
        address: scratch.path().join("none.sock").display().to_string(),
        connect_time: Duration::from_millis(300),
        ..ClientOptions::default()
    };
    runtime.block_on(async {
        let error = Client::connect(&options).await.unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
        let late = Client::lazy(&options).unwrap().version().await.unwrap_err();
        assert_eq!(late.fault(), Some(Fault::Unavailable), "{late}");
    });
}
