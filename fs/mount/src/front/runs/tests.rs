use std::os::fd::BorrowedFd;

use proptest::prelude::*;
use spanfs_cache::ReadReply;

use super::*;

/// A layer file of bytes that tell their place, absent from `present` on.
struct Rising {
    len: u64,
    present: u64,
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(167) >> 3) as u8 | 1
}

impl Content for Rising {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        let end = (offset.0 + buffer.len() as u64).min(self.len);
        if end > self.present {
            return Ok(None);
        }
        let count = end.saturating_sub(offset.0) as usize;
        for (at, place) in (offset.0..).zip(&mut buffer[..count]) {
            *place = byte(at);
        }
        Ok(Some(count))
    }

    fn fill(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        reply(if range.end.0 <= self.present {
            Ok(())
        } else {
            Err(ReadError::Unavailable("behind what is there".into()))
        });
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn all_there(len: u64) -> Rising {
    Rising { len, present: len }
}

/// Gap before each run, its length, and its place in the layer file.
fn runs(shape: &[(u64, u64, u64)]) -> Vec<Run> {
    let mut file = 0;
    let mut made = Vec::new();
    for &(gap, len, data) in shape {
        file += gap;
        made.push(Run { file, data, len });
        file += len;
    }
    made
}

proptest! {
    #[test]
    fn any_read_is_that_part_of_the_whole(
        shape in prop::collection::vec((0..700u64, 1..900u64, 0..5000u64), 0..6),
        tail in 0..600u64, offset in 0..6000u64, len in 0..4000usize,
    ) {
        let runs = runs(&shape);
        let size = runs.last().map_or(0, |run| run.file + run.len) + tail;
        let mut whole = vec![0; size as usize];
        for run in &runs {
            for index in 0..run.len {
                whole[(run.file + index) as usize] = byte(run.data + index);
            }
        }
        let start = (offset as usize).min(whole.len());
        let expected = &whole[start..(start + len).min(whole.len())];
        let mut buffer = vec![0xee; len];
        let count =
            read_present(&all_there(8192), runs.iter().copied(), size, offset, &mut buffer).unwrap();
        prop_assert_eq!(count, Some(expected.len()));
        prop_assert_eq!(&buffer[..expected.len()], expected);
        let asked: u64 = data_ranges(runs.into_iter(), size, offset, len as u64)
            .iter().map(|range| range.end.0 - range.start.0).sum();
        prop_assert!(asked <= expected.len() as u64);
    }
}

#[test]
fn a_file_longer_than_its_layer_is_an_error_never_zeros() {
    let runs = runs(&[(0, 100, 450)]);
    let mut buffer = [0; 100];
    let read = read_present(&all_there(512), runs.into_iter(), 100, 0, &mut buffer);
    assert!(matches!(read, Err(ReadError::Corrupt(_))), "{read:?}");
}

#[test]
fn one_missing_run_makes_the_read_a_miss() {
    let content = Rising { len: 1024, present: 512 };
    let runs = runs(&[(0, 10, 0), (10, 10, 600)]);
    let mut buffer = [0; 30];
    let read = read_present(&content, runs.iter().copied(), 30, 0, &mut buffer).unwrap();
    assert_eq!(read, None);
    assert_eq!(
        read_present(&content, runs.into_iter(), 30, 0, &mut buffer[..20]).unwrap(),
        Some(20)
    );
}

#[test]
fn fills_reply_once_with_the_first_error() {
    let content = Rising { len: 1024, present: 512 };
    for (starts, expected) in
        [(vec![], Ok(())), (vec![0, 100], Ok(())), (vec![0, 600, 100], Err(Errno::InputOutput))]
    {
        let ranges = starts
            .iter()
            .map(|&start| UncompressedOffset(start)..UncompressedOffset(start + 10))
            .collect();
        let (sender, receiver) = std::sync::mpsc::channel();
        let failures = Arc::new(Failures::of("test"));
        let reply = Box::new(move |result| sender.send(result).unwrap());
        fill_all(&content, ranges, &failures, reply);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn neighbouring_runs_are_asked_for_together() {
    let runs = [Run { file: 0, data: 512, len: 10 }, Run { file: 20, data: 522, len: 10 }];
    let ranges = data_ranges(runs.into_iter(), 30, 0, 30);
    assert_eq!(ranges, [UncompressedOffset(512)..UncompressedOffset(532)]);
}
