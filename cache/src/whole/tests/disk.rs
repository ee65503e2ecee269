//! A disk that is too small, by more or less.

use super::*;
use crate::testing::Tmpfs;

/// Whatever does not fit any more, the tar, the zTOC, the journal: all of the layer goes.
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let tar = tar_of(10, 100_000);
    let (mut full, mut fits) = (0, 0);
    for pages in 20..48 {
        let size = std::ffi::CString::new(format!("size={}k", pages * 4)).unwrap();
        let Some(disk) = Tmpfs::new(&size) else { return };
        let cache = cache(disk.path());
        let blob = TestBlob::new(tar.clone());
        match cache.whole(spec(blob.clone(), None)) {
            Ok(whole) => {
                assert_content(&whole, &tar);
                fits += 1;
            }
            Err(CacheError::Storage { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{pages} pages");
                assert_nothing_left(disk.path());
                full += 1;
            }
            Err(error) => panic!("{pages} pages: {error}"),
        }
    }
    assert!(full > 3 && fits > 3, "{full} of the disks were full, {fits} not");
}

#[test]
fn a_full_disk_refuses_a_layer_without_ztoc_too() {
    let mut blob = tar_of(11, 100_000);
    // An entry that no zTOC can express.
    blob[156] = b'7';
    let sum: u32 = blob[..512]
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => 32,
            _ => u32::from(*byte),
        })
        .sum();
    blob[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    for (pages, fits) in [(20, false), (64, true)] {
        let size = std::ffi::CString::new(format!("size={}k", pages * 4)).unwrap();
        let Some(disk) = Tmpfs::new(&size) else { return };
        let cache = cache(disk.path());
        match cache.whole(spec(TestBlob::new(blob.clone()), None)) {
            Ok(whole) => {
                assert!(fits && matches!(whole.toc, WholeToc::Never { .. }));
                assert_content(&whole, &blob);
            }
            Err(error) => {
                assert!(!fits && matches!(error, CacheError::Storage { .. }), "{error}");
                assert_nothing_left(disk.path());
            }
        }
    }
}
