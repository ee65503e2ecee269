//! The machine over real contents.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use spanfs_cache::Content;

use super::{Need, StartSet, Wanted};

/// Run `set` over the contents of its layers, the lowest first, telling `wanted` as it goes.
///
/// Waits for its own reads, so it wants a thread of its own; after `at_most` what has been found by
/// then is all there is. Never for a thread that the contents' fills depend on.
pub fn drive(
    mut set: StartSet,
    contents: &[Arc<dyn Content>],
    at_most: Duration,
    mut wanted: impl FnMut(Wanted),
) {
    let until = Instant::now() + at_most;
    let (sender, arrived) = mpsc::channel();
    let mut waiting = 0usize;
    loop {
        while let Some(range) = set.poll_wanted() {
            wanted(range);
        }
        if let Some(need) = set.poll_need() {
            match present(contents, &need) {
                Present::Bytes(bytes) => set.handle_bytes(&need, bytes),
                Present::Never => set.handle_failed(&need),
                Present::NotYet(content) => {
                    waiting += 1;
                    let (sender, asked) = (sender.clone(), need.clone());
                    let reply = move |result: Result<(), _>| {
                        let _gone = sender.send((asked, result.is_ok())); // The time was up.
                    };
                    content.fill(need.range, Box::new(reply));
                }
            }
            continue;
        }
        if waiting == 0 {
            return;
        }
        let left = until.saturating_duration_since(Instant::now());
        let Ok((need, filled)) = arrived.recv_timeout(left) else {
            return tracing::debug!(waiting, "start set is cut short: no answer in {at_most:?}");
        };
        waiting -= 1;
        match present(contents, &need) {
            Present::Bytes(bytes) if filled => set.handle_bytes(&need, bytes),
            _ => set.handle_failed(&need),
        }
    }
}

enum Present<'a> {
    Bytes(Vec<u8>),
    NotYet(&'a dyn Content),
    Never,
}

fn present<'a>(contents: &'a [Arc<dyn Content>], need: &Need) -> Present<'a> {
    let Some(content) = contents.get(usize::from(need.layer)) else { return Present::Never };
    let len = need.range.end.checked_since(need.range.start).and_then(|len| len.try_into().ok());
    let mut bytes = vec![0; len.unwrap_or(0)]; // A need is bounded by the machine.
    match content.read_present(need.range.start, &mut bytes) {
        Ok(Some(count)) if count == bytes.len() => Present::Bytes(bytes),
        Ok(None) => Present::NotYet(&**content),
        Ok(Some(_)) | Err(_) => Present::Never,
    }
}
