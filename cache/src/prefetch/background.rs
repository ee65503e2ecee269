//! How much of what nobody asked for may be under way. Pure.

use std::time::{Duration, Instant};

/// Whether what nobody asked for is fetched too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// Only what is read or expected.
    Off,
    /// Everything, in idle time.
    On,
}

/// Compressed bytes of an image that is fetched as a whole at once where nothing better is known.
/// Measured: right at 404 MB, wrong at 3168 MB, nothing between was tried.
const SMALL_BYTES: u64 = 512 << 20;
/// Spans under way for a small image without a trace: as many as connections, less two for demand.
const SPANS_SMALL: usize = 6;
/// Spans under way while a reader waits: its inflation must not wait behind others.
const SPANS_WAITING: usize = 1;
/// How long nothing but a trickle is fetched in the background after an image was opened, unless
/// somebody reads: the first read of all must find the link and the cores free.
const GRACE: Duration = Duration::from_millis(300);
/// Spans under way right after a read: more takes cores and link from the program that starts.
const SPANS_BUSY: usize = 2;
/// Spans under way when nobody has read for a while, then for long.
const SPANS_IDLE: usize = 4;
const SPANS_LONG_IDLE: usize = 8;
const IDLE: Duration = Duration::from_millis(500);
const LONG_IDLE: Duration = Duration::from_secs(5);
/// After a span that could not be had, nothing is tried in the background for so long, then longer.
const RETRY_DELAY: Duration = Duration::from_secs(2);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(120);

/// Limits of the background, as they are now.
#[derive(Debug)]
pub(crate) struct Pace {
    options: Background,
    small: bool,
    traced: bool,
    /// When it was first asked.
    opened: Option<Instant>,
    last_read: Option<Instant>,
    retry_delay: Duration,
    retry_at: Option<Instant>,
}

impl Pace {
    /// For an image of `compressed_bytes`; `traced` if the spans of an earlier start are known.
    pub(crate) fn new(options: Background, compressed_bytes: u64, traced: bool) -> Self {
        Self {
            options,
            small: compressed_bytes <= SMALL_BYTES,
            traced,
            opened: None,
            last_read: None,
            retry_delay: RETRY_DELAY,
            retry_at: None,
        }
    }

    /// Somebody reads.
    pub(crate) fn handle_read(&mut self, now: Instant) {
        self.last_read = Some(now);
    }

    /// A span came.
    pub(crate) fn handle_arrival(&mut self) {
        self.retry_delay = RETRY_DELAY;
    }

    /// A span could not be had.
    pub(crate) fn handle_failure(&mut self, now: Instant) {
        if self.retry_at.is_none_or(|at| at <= now) {
            self.retry_at = Some(now + self.retry_delay);
            self.retry_delay = (self.retry_delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    /// Spans that may be under way now, with `waiting` readers waiting.
    pub(crate) fn spans_max(&mut self, now: Instant, waiting: usize) -> usize {
        if self.options == Background::Off || self.retry_at.is_some_and(|at| now < at) {
            return 0;
        }
        let opened = *self.opened.get_or_insert(now);
        if self.last_read.is_none() && now.saturating_duration_since(opened) < GRACE {
            return SPANS_WAITING;
        }
        let idle = self.last_read.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        match idle {
            _ if self.small && !self.traced => SPANS_SMALL,
            _ if waiting > 0 => SPANS_WAITING,
            idle if idle >= LONG_IDLE => SPANS_LONG_IDLE,
            idle if idle >= IDLE => SPANS_IDLE,
            _ if self.traced => SPANS_WAITING,
            _ => SPANS_BUSY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Background::On as ON;

    #[test]
    fn widens_as_readers_leave() {
        let start = Instant::now();
        let check = |bytes: u64, traced: bool, after_ms: u64, waiting: usize, expected: usize| {
            let mut pace = Pace::new(ON, bytes, traced);
            pace.handle_read(start);
            let now = start + Duration::from_millis(after_ms);
            assert_eq!(pace.spans_max(now, waiting), expected, "{bytes} {traced} {after_ms}");
        };
        let (small, large) = (400 << 20, 3000 << 20);
        check(small, false, 0, 1, SPANS_SMALL);
        check(small, true, 0, 1, 1);
        check(small, true, 100, 0, 1);
        check(large, false, 0, 1, 1);
        check(large, false, 100, 0, SPANS_BUSY);
        check(large, false, 600, 0, SPANS_IDLE);
        check(large, false, 600, 1, 1);
        check(large, false, 6000, 0, SPANS_LONG_IDLE);
        assert_eq!(Pace::new(Background::Off, 0, false).spans_max(start, 0), 0);
    }

    #[test]
    fn leaves_the_first_read_the_link() {
        let mut pace = Pace::new(ON, 1 << 20, false);
        let start = Instant::now();
        assert_eq!(pace.spans_max(start, 0), SPANS_WAITING);
        assert_eq!(pace.spans_max(start + GRACE, 0), SPANS_SMALL);
        let mut read = Pace::new(ON, 1 << 20, false);
        read.handle_read(start);
        assert_eq!(read.spans_max(start, 0), SPANS_SMALL);
    }

    #[test]
    fn stands_back_longer_after_each_failure() {
        let mut pace = Pace::new(ON, 0, false);
        let mut now = Instant::now();
        let mut waited = Vec::new();
        for _ in 0..8 {
            pace.handle_failure(now);
            pace.handle_failure(now);
            let start = now;
            while pace.spans_max(now, 0) == 0 {
                now += Duration::from_secs(1);
            }
            waited.push((now - start).as_secs());
        }
        assert_eq!(waited, [2, 4, 8, 16, 32, 64, 120, 120]);
    }
}
