//! Faults on purpose: a decorator over any [`Blob`] that fails, delays and corrupts from a seed, for
//! the tests of those who build on one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use spanfs_layer::Digest;

use crate::blob::{Blob, FetchError, FetchErrorDetail, Fetched, Ticket, Want};
use crate::retry::Random;

/// What goes wrong how often; each in wants per 1,000.
#[derive(Clone, Debug, Default)]
pub struct FaultOptions {
    /// Same seed and same order of wants, same faults.
    pub seed: u64,
    /// The want fails as unreachable.
    pub drop_per_mille: u32,
    /// The reply comes later, by up to [`Self::delay_max`].
    pub delay_per_mille: u32,
    /// See [`Self::delay_per_mille`].
    pub delay_max: Duration,
    /// One bit of the reply is wrong.
    pub flip_per_mille: u32,
    /// The reply ends early, which the engine reports as an error.
    pub truncate_per_mille: u32,
}

/// A blob with faults.
pub struct FaultBlob {
    inner: Arc<dyn Blob>,
    options: FaultOptions,
    random: Mutex<Random>,
    late: Sender<Late>,
}

/// What one want has to suffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    Dropped,
    /// Bit to flip, modulo the reply's length.
    Flipped(u64),
    Truncated,
}

type Delivery = Box<dyn FnOnce() + Send>;

struct Late {
    at: Instant,
    /// Keeps the heap's order total.
    serial: u64,
    deliver: Delivery,
}

/// Replies that wait at once; a further one waits for room on the engine's thread.
const LATE_MAX: usize = 4096;

impl FaultBlob {
    /// Decorate a blob. Delayed replies come from a thread that ends with the last of them.
    pub fn new(inner: Arc<dyn Blob>, options: FaultOptions) -> Arc<Self> {
        let (late, waiting) = bounded(LATE_MAX);
        if options.delay_per_mille > 0 {
            let timer = std::thread::Builder::new().name("spanfs-fault".into());
            if let Err(error) = timer.spawn(move || deliver_late(&waiting)) {
                tracing::warn!("replies cannot be delayed: {error}");
            }
        }
        let random = Mutex::new(Random(options.seed));
        Arc::new(Self { inner, options, random, late })
    }

    fn fate(&self) -> (Fate, Option<Duration>) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let options = &self.options;
        // The same number of draws for each want, whatever happens to it.
        let mut happens = |per_mille: u32| random.below(1000) < u64::from(per_mille);
        let (dropped, truncated) =
            (happens(options.drop_per_mille), happens(options.truncate_per_mille));
        let (flipped, delayed) =
            (happens(options.flip_per_mille), happens(options.delay_per_mille));
        let bit = random.next();
        let delay = options.delay_max.mul_f64(random.below(1000) as f64 / 1000.0);
        let fate = match (dropped, truncated, flipped) {
            (true, _, _) => Fate::Dropped,
            (_, true, _) => Fate::Truncated,
            (_, _, true) => Fate::Flipped(bit),
            _ => Fate::Good,
        };
        (fate, delayed.then_some(delay))
    }
}

impl Blob for FaultBlob {
    fn digest(&self) -> &Digest {
        self.inner.digest()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn distrust(&self) {
        self.inner.distrust();
    }

    fn want(&self, want: Want) -> Ticket {
        let (fate, delay) = self.fate();
        let Want { range, priority, headroom, reply } = want;
        let (digest, wanted) = (*self.digest(), range.clone());
        let suffer = move |result: Result<Fetched, FetchError>| {
            let fail = |message: &str| {
                let message = format!("fault on purpose: {message}");
                Err(FetchError::Unreachable(FetchErrorDetail { digest, range: wanted, message }))
            };
            match fate {
                Fate::Good => result,
                Fate::Dropped => result.and_then(|_| fail("dropped")),
                Fate::Truncated => result.and_then(|_| fail("the reply ended early")),
                Fate::Flipped(bit) => result.map(|fetched| flip(fetched, bit)),
            }
        };
        let late = self.late.clone();
        let reply = move |result| {
            let result = suffer(result);
            let Some(delay) = delay else { return reply(result) };
            let deliver: Delivery = Box::new(move || reply(result));
            let late_one = Late { at: Instant::now() + delay, serial: 0, deliver };
            if let Err(unsent) = late.send(late_one) {
                (unsent.into_inner().deliver)();
            }
        };
        self.inner.want(Want { range, priority, headroom, reply: Box::new(reply) })
    }

    fn recycle(&self, bytes: Vec<u8>) {
        self.inner.recycle(bytes);
    }

    fn has_ranges(&self) -> bool {
        self.inner.has_ranges()
    }
}

fn flip(mut fetched: Fetched, bit: u64) -> Fetched {
    let bits = (fetched.data().len() as u64).saturating_mul(8);
    let at = usize::try_from(bit.checked_rem(bits).unwrap_or(0)).unwrap_or(0);
    if let Some(byte) = fetched.bytes.get_mut(fetched.headroom + at / 8) {
        *byte ^= 1 << (at % 8);
    }
    fetched
}

/// Deliver each reply at its time, until no further one can come.
fn deliver_late(waiting: &Receiver<Late>) {
    let mut heap = BinaryHeap::new();
    let mut serial = 0;
    let mut open = true;
    while open || !heap.is_empty() {
        while heap.peek().is_some_and(|Reverse(late): &Reverse<Late>| late.at <= Instant::now()) {
            if let Some(Reverse(late)) = heap.pop() {
                (late.deliver)();
            }
        }
        let idle = Duration::from_secs(1);
        let next = heap.peek().map(|Reverse(late)| late.at);
        let wait = next.map_or(idle, |at| at.saturating_duration_since(Instant::now()));
        if !open {
            std::thread::sleep(wait);
            continue;
        }
        match waiting.recv_timeout(wait) {
            Ok(late) => {
                serial += 1;
                heap.push(Reverse(Late { serial, ..late }));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Late {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Priority;
    use crate::engine::fetch_blocking;
    use crate::memory_blob::MemoryBlob;

    /// Outcomes of 200 wants: right, wrong in one bit, or failed.
    fn outcomes(options: FaultOptions) -> Vec<char> {
        let content: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let blob = FaultBlob::new(MemoryBlob::new(content.clone()), options);
        let get = |index: u64| {
            let range = index * 50..index * 50 + 40;
            let expected = &content[range.start as usize..range.end as usize];
            let patience = Duration::from_secs(5);
            match fetch_blocking(&*blob, range, Priority::OnDemand, patience) {
                Ok(fetched) if fetched.data() == expected => 'r',
                Ok(fetched) => {
                    let pairs = fetched.data().iter().zip(expected);
                    let bits: u32 = pairs.map(|(a, b)| (a ^ b).count_ones()).sum();
                    assert_eq!(bits, 1);
                    'w'
                }
                Err(error) => {
                    assert!(error.to_string().contains("on purpose"), "{error}");
                    'f'
                }
            }
        };
        (0..200).map(get).collect()
    }

    #[test]
    fn faults_follow_the_seed() {
        let options = |seed| FaultOptions {
            seed,
            drop_per_mille: 100,
            delay_per_mille: 300,
            delay_max: Duration::from_millis(3),
            flip_per_mille: 100,
            truncate_per_mille: 100,
        };
        let first = outcomes(options(1));
        assert_eq!(first, outcomes(options(1)));
        assert_ne!(first, outcomes(options(2)));
        for expected in ['r', 'w', 'f'] {
            assert!(first.contains(&expected), "{first:?}");
        }
        assert_eq!(outcomes(FaultOptions::default()), ['r'; 200]);
    }
}
