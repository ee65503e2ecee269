use super::*;
use crate::testing::{TestLayer, fill, read, wait_until};
use crate::{Background, Content, Trace};
use spanfs_layer::UncompressedOffset;

const SPAN: usize = 4096;
const ON: Background = Background::On;

fn cache(root: &std::path::Path, quota_bytes: Option<u64>) -> Cache {
    let mut options = CacheOptions::new(root.to_path_buf(), 2);
    options.quota_bytes = quota_bytes;
    Cache::open(options).unwrap()
}

fn image(cache: &Cache, layers: &[&Arc<Layer>], background: Background) -> Arc<Image> {
    cache.image(ImageSpec {
        layers: layers.iter().copied().cloned().collect(),
        config: Some(Digest::of(b"config")),
        background,
        record: true,
    })
}

#[test]
fn a_layer_is_shared_and_another_format_refused() {
    let root = tempfile::tempdir().unwrap();
    let test = TestLayer::new(20, 4 * SPAN, SPAN, 0);
    let cache = cache(root.path(), None);
    let (one, two) = (cache.layer(test.spec()).unwrap(), cache.layer(test.spec()).unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    assert!(matches!(cache.remove(one.digest()), Err(CacheError::InUse { .. })));
    let digest = *one.digest();
    drop((one, two));
    cache.remove(&digest).unwrap();
    assert_eq!(cache.status().layer_count, 0);
    std::fs::write(root.path().join("version"), "something\nelse").unwrap();
    let error = Cache::open(CacheOptions::new(root.path().to_path_buf(), 1)).err().unwrap();
    assert!(matches!(&error, CacheError::OtherFormat { found, .. } if found == "something"));
}

#[test]
fn eviction_takes_the_oldest_and_never_what_is_used() {
    let root = tempfile::tempdir().unwrap();
    let cache = cache(root.path(), Some(300_000));
    let open = |seed| {
        let test = TestLayer::new(seed, 128 << 10, 64 << 10, 0);
        let layer = cache.layer(test.spec()).unwrap();
        fill(&layer, 0..128 << 10).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        layer
    };
    let digests = {
        let layers = [open(30), open(31), open(32), open(33)];
        let collected = cache.collect();
        assert!(collected.layers == 0 && collected.left_bytes > 4 * (128 << 10));
        let digests = layers.each_ref().map(|layer| *layer.digest());
        for layer in layers {
            // The last to let go notes the use.
            let alone = || layer.complete_file().is_some() && Arc::strong_count(&layer) == 1;
            wait_until("the seal", alone);
            drop(layer);
            std::thread::sleep(Duration::from_millis(10));
        }
        digests
    };
    // The keeper may come before us.
    cache.collect();
    let present =
        |digest: &Digest| root.path().join("layers/sha256").join(digest.hex().to_string()).exists();
    assert_eq!(digests.each_ref().map(present), [false, false, true, true]);
    assert!(cache.status().disk_bytes <= 300_000);
}

#[test]
fn the_background_completes_an_image_and_each_span_is_fetched_once() {
    let root = tempfile::tempdir().unwrap();
    let cache = cache(root.path(), None);
    let tests = [40, 41, 42].map(|seed| TestLayer::new(seed, 50 * SPAN, SPAN, 0));
    let layers = tests.each_ref().map(|test| cache.layer(test.spec()).unwrap());
    let image = image(&cache, &layers.each_ref(), ON);
    for (layer, test) in layers.iter().zip(&tests) {
        for at in [0, 30 * SPAN, 7 * SPAN, 49 * SPAN] {
            assert_eq!(read(layer, at as u64, SPAN).unwrap(), &test.content()[at..at + SPAN]);
        }
    }
    wait_until("completion", || image.status().done);
    for (layer, test) in layers.iter().zip(&tests) {
        wait_until("verification", || layer.complete_file().is_some());
        assert_eq!(test.blob.wants(), 50);
    }
    assert_eq!(image.status().touched_spans, 12);
}

#[test]
fn a_trace_is_recorded_and_replayed_in_order() {
    let root = tempfile::tempdir().unwrap();
    let order = [17usize, 3, 42, 4, 20];
    let test = TestLayer::new(50, 50 * SPAN, SPAN, 0);
    let expected: Vec<_> =
        order.iter().map(|span| (span * SPAN) as u64..((span + 1) * SPAN) as u64).collect();
    {
        let cache = cache(root.path(), None);
        let layer = cache.layer(test.spec()).unwrap();
        let image = image(&cache, &[&layer], Background::Off);
        for span in order {
            read(&layer, (span * SPAN) as u64, 1).unwrap();
            read(&layer, (span * SPAN) as u64 + 5, 1).unwrap();
        }
        drop(image);
        let path = cache.trace_path(&Digest::of(b"config"));
        // The cache's thread may hold the image for a moment.
        wait_until("the trace", || path.exists());
        let trace = Trace::read(&path).unwrap().unwrap();
        let found: Vec<_> = trace.runs.iter().map(|(_, run)| run.start.0..run.end.0).collect();
        assert_eq!(found, expected);
        drop(layer);
        wait_until("the layer's last user", || cache.remove(&trace.layers[0]).is_ok());
    }
    let cache = cache(root.path(), None);
    let layer = cache.layer(test.spec()).unwrap();
    test.blob.wanted.lock().clear();
    let image = image(&cache, &[&layer], Background::Off);
    assert_eq!(image.status().trace_runs, 5);
    wait_until("the replay", || layer.status().spans_present == 5);
    assert_eq!(*test.blob.wanted.lock(), expected);
}

#[test]
fn a_start_set_is_fetched_before_it_is_read() {
    let root = tempfile::tempdir().unwrap();
    let cache = cache(root.path(), None);
    let test = TestLayer::new(60, 50 * SPAN, SPAN, 0);
    let layer = cache.layer(test.spec()).unwrap();
    let image = image(&cache, &[&layer], Background::Off);
    let range = |from: u64, to: u64| (0, UncompressedOffset(from)..UncompressedOffset(to));
    image.expect(&[range(10_000, 10_001), range(8 * SPAN as u64, 10 * SPAN as u64)]);
    wait_until("the start set", || layer.status().spans_present == 3);
    assert_eq!(test.blob.wants(), 3);
}

#[test]
fn traces_of_images_that_are_gone_give_way_oldest_first() {
    let root = tempfile::tempdir().unwrap();
    let cache = cache(root.path(), None);
    let configs: Vec<_> = (0..5u8).map(|number| Digest::of(&[number])).collect();
    for (days, config) in (0..).zip(&configs) {
        let path = cache.trace_path(config);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        file.set_modified(time).unwrap();
    }
    cache.sweep_traces(|config| *config == configs[0], 2);
    let left: Vec<_> = configs.iter().map(|config| cache.trace_path(config).exists()).collect();
    assert_eq!(left, [true, false, false, true, true]);
}
