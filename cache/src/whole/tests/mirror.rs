//! A mirror that lies is left for another one.

use std::sync::atomic::AtomicUsize;

use super::*;

/// Another blob's bytes, until somebody complains.
struct Lying {
    right: Arc<TestBlob>,
    wrong: Arc<TestBlob>,
    complaints: AtomicUsize,
    /// Complaints before the right bytes come.
    patience: usize,
}

impl Blob for Lying {
    fn digest(&self) -> &Digest {
        self.right.digest()
    }

    fn size(&self) -> u64 {
        self.right.size()
    }

    fn want(&self, want: Want) -> Ticket {
        match self.complaints.load(Ordering::Relaxed) < self.patience {
            true => self.wrong.want(want),
            false => self.right.want(want),
        }
    }

    fn distrust(&self) {
        self.complaints.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_blob_that_is_not_the_layer_is_read_again_from_elsewhere() {
    let tar = tar_of(21, 200_000);
    let mut changed = tar.clone();
    changed[100_000] ^= 1;
    let mut no_tar = tar.clone();
    no_tar[10] ^= 1;
    for wrong in [changed, no_tar] {
        for (buffer, patience) in
            [(Buffer::Memory, 1), (Buffer::File, 1), (Buffer::Memory, 2), (Buffer::File, 2)]
        {
            let root = tempfile::tempdir().unwrap();
            let blob = Arc::new(Lying {
                right: TestBlob::new(tar.clone()),
                wrong: TestBlob::new(wrong.clone()),
                complaints: AtomicUsize::new(0),
                patience,
            });
            let spec = WholeSpec { buffer, ..spec(blob.clone(), Some(Digest::of(&tar))) };
            let result = cache(root.path()).whole(spec);
            assert_eq!(blob.complaints.load(Ordering::Relaxed), 1, "one more try, no more");
            match (patience, result) {
                (1, whole) => assert_content(&whole.unwrap(), &tar),
                (_, Ok(_)) => panic!("wrong bytes became the layer"),
                (_, Err(error)) => {
                    assert_eq!(error.class(), Class::Corrupt, "{error}");
                    assert_nothing_left(root.path());
                }
            }
        }
    }
}
