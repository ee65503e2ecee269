//! The link between clients and the registry: round trips and bandwidth.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::faults::mix;

/// How far away the registry pretends to be.
///
/// Applied to what the registry writes: uploads are not slowed. A new connection costs one round
/// trip, a TLS handshake one more, and each request one before its answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Round trip. Timers round it up to the millisecond.
    pub rtt: Duration,
    /// Bytes per second of all connections together; `None` is as fast as the machine.
    pub bytes_per_second: Option<u64>,
    /// Bytes per second of one connection; `None` leaves the limit of all.
    pub connection_bytes_per_second: Option<u64>,
    /// How much longer than `rtt` a round trip may take: evenly spread, from a fixed seed.
    pub jitter: Duration,
    /// Time that the registry itself takes before each answer begins.
    pub first_byte: Duration,
}

const MBIT: u64 = 1_000_000 / 8;

impl Link {
    /// Loopback as it is.
    pub const UNLIMITED: Self = Self {
        rtt: Duration::ZERO,
        bytes_per_second: None,
        connection_bytes_per_second: None,
        jitter: Duration::ZERO,
        first_byte: Duration::ZERO,
    };
    /// A registry in the same rack: 1 ms, 10 Gbit/s.
    pub const LAN: Self = Self {
        rtt: Duration::from_millis(1),
        bytes_per_second: Some(10_000 * MBIT),
        ..Self::UNLIMITED
    };
    /// A registry of the cloud region: 10 ms, 2 Gbit/s, 500 Mbit/s per connection.
    pub const CLOUD: Self = Self {
        rtt: Duration::from_millis(10),
        bytes_per_second: Some(2_000 * MBIT),
        connection_bytes_per_second: Some(500 * MBIT),
        ..Self::UNLIMITED
    };
    /// Across a country: 40 ms, 200 Mbit/s.
    pub const WAN: Self = Self {
        rtt: Duration::from_millis(40),
        bytes_per_second: Some(200 * MBIT),
        ..Self::UNLIMITED
    };
    /// A site behind a thin line: 100 ms, 20 Mbit/s.
    pub const EDGE: Self = Self {
        rtt: Duration::from_millis(100),
        bytes_per_second: Some(20 * MBIT),
        ..Self::UNLIMITED
    };

    /// Every preset with its name.
    pub const PRESETS: [(&'static str, Self); 5] = [
        ("unlimited", Self::UNLIMITED),
        ("lan", Self::LAN),
        ("cloud", Self::CLOUD),
        ("wan", Self::WAN),
        ("edge", Self::EDGE),
    ];

    /// The preset of that name.
    pub fn preset(name: &str) -> Option<Self> {
        Self::PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, link)| *link)
    }

    /// The same link with its bandwidths divided, for small machines and small images.
    pub fn slower(self, by: u64) -> Self {
        let divide = |rate: Option<u64>| rate.map(|rate| (rate / by.max(1)).max(1));
        Self {
            bytes_per_second: divide(self.bytes_per_second),
            connection_bytes_per_second: divide(self.connection_bytes_per_second),
            ..self
        }
    }
}

/// A sender that may fall this far behind its rate and catch up, so that coarse timers cost no
/// bandwidth.
const CATCH_UP: Duration = Duration::from_millis(4);

/// When the next byte may leave at a given rate.
#[derive(Debug)]
pub(crate) struct Pace {
    next: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// Take `len` bytes' worth of time: when they begin to leave, and when they have left.
    pub(crate) fn reserve(&mut self, now: Instant, len: usize, rate: u64) -> (Instant, Instant) {
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        let start = self.next.max(earliest);
        let nanoseconds = len as u128 * 1_000_000_000 / u128::from(rate.max(1));
        let end = start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX / 4));
        self.next = end;
        (start, end)
    }
}

/// The link as all connections share it.
#[derive(Debug)]
pub(crate) struct SharedLink {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    link: Link,
    pace: Pace,
    busy: Busy,
    /// Round trips so far: the seed of the next one's jitter.
    trips: u64,
}

impl SharedLink {
    pub(crate) fn new(link: Link) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(State {
                link,
                pace: Pace::new(now),
                busy: Busy::default(),
                trips: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn link(&self) -> Link {
        self.lock().link
    }

    /// How long the next round trip takes.
    pub(crate) fn round_trip(&self) -> Duration {
        let mut state = self.lock();
        state.trips += 1;
        let share = (mix(state.trips) >> 11) as f64 / (1u64 << 53) as f64;
        state.link.rtt + state.link.jitter.mul_f64(share)
    }

    pub(crate) fn set(&self, link: Link) {
        let mut state = self.lock();
        state.link = link;
        state.pace = Pace::new(Instant::now());
    }

    /// When `len` more bytes of a connection will have left.
    pub(crate) fn reserve(&self, connection: &mut Pace, now: Instant, len: usize) -> Instant {
        let mut state = self.lock();
        let mut until = now;
        if let Some(rate) = state.link.connection_bytes_per_second {
            until = until.max(connection.reserve(now, len, rate).1);
        }
        if let Some(rate) = state.link.bytes_per_second {
            let (start, end) = state.pace.reserve(now, len, rate);
            state.busy.add(start, end);
            until = until.max(end);
        }
        until
    }

    pub(crate) fn busy(&self) -> Vec<(Instant, Instant)> {
        self.lock().busy.intervals.clone()
    }

    pub(crate) fn forget_busy(&self) {
        self.lock().busy = Busy::default();
    }
}

/// When the link was carrying bytes, gaps below [`GAP`] closed.
#[derive(Debug, Default)]
struct Busy {
    intervals: Vec<(Instant, Instant)>,
}

const GAP: Duration = Duration::from_micros(200);
/// Enough for an hour of bursts; older ones stay, later ones widen the last.
const INTERVALS_MAX: usize = 1 << 20;

impl Busy {
    fn add(&mut self, start: Instant, end: Instant) {
        let full = self.intervals.len() >= INTERVALS_MAX;
        match self.intervals.last_mut() {
            Some(last) if full || start <= last.1 + GAP => last.1 = last.1.max(end),
            _ => self.intervals.push((start, end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_spreads_bytes_at_the_rate() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let mut end = now;
        for _ in 0..10 {
            end = pace.reserve(now, 1000, 10_000).1;
        }
        assert_eq!(end - now, Duration::from_secs(1));
    }

    #[test]
    fn jitter_only_adds_and_repeats() {
        let link = Link {
            rtt: Duration::from_millis(10),
            jitter: Duration::from_millis(5),
            ..Link::UNLIMITED
        };
        let trips = || {
            let shared = SharedLink::new(link);
            (0..200).map(|_| shared.round_trip()).collect::<Vec<_>>()
        };
        let found = trips();
        assert_eq!(found, trips());
        assert!(found.iter().all(|trip| (10..15).contains(&trip.as_millis())), "{found:?}");
        assert!(found.iter().any(|trip| trip.as_millis() == 14), "{found:?}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let later = now + Duration::from_secs(60);
        let (start, end) = pace.reserve(later, 1000, 1000);
        assert_eq!(start, later - CATCH_UP);
        assert_eq!(end - start, Duration::from_secs(1));
    }

    #[test]
    fn busy_intervals_join_when_they_touch() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut busy = Busy::default();
        busy.add(at(0), at(5));
        busy.add(at(5), at(9));
        busy.add(at(20), at(21));
        assert_eq!(busy.intervals, [(at(0), at(9)), (at(20), at(21))]);
    }
}
