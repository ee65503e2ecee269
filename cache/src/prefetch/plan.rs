//! What to fetch before it is read, over all layers of an image: events in, spans to ask for out.
//! Pure.
//!
//! In this order: the neighbours of what is read, the trace of an earlier start, the predicted start
//! set, then the rest of the image behind the last miss.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use spanfs_fetch::Priority;

use super::background::{Background, Pace};
use super::bandwidth::Bandwidth;
use super::neighbours::Neighbours;

/// A span of one of the image's layers.
pub(crate) type Place = (usize, usize);

/// Spans under way that somebody is expected to read soon. More would only make the first of them
/// come later.
const EXPECTED_MAX: usize = 16;
/// Spans that wait for their turn; guesses beyond are forgotten.
const QUEUE_MAX: usize = 1 << 16;

/// What to ask for, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) place: Place,
    pub(crate) priority: Priority,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Compressed bytes of each span, by layer.
    layers: Vec<Vec<u32>>,
    span_count: usize,
    /// Trace and start set, in order.
    expected: VecDeque<Place>,
    /// Spans of the trace: reading them is no surprise that says anything of their neighbours.
    traced: HashSet<Place>,
    near: VecDeque<Place>,
    neighbours: Neighbours,
    pace: Pace,
    paused: bool,
    /// Where the background goes on.
    cursor: Place,
    /// Spans that the background has passed since the cursor last jumped.
    passed: usize,
    under_way: HashMap<Place, Priority>,
}

impl Plan {
    /// Nothing read yet; `layers` has the compressed bytes of each span, `trace` the spans that an
    /// earlier start read, in order.
    pub(crate) fn new(layers: Vec<Vec<u32>>, background: Background, trace: Vec<Place>) -> Self {
        let bytes = layers.iter().flatten().map(|len| u64::from(*len)).sum();
        let mut plan = Self {
            span_count: layers.iter().map(Vec::len).sum(),
            layers,
            expected: VecDeque::new(),
            traced: trace.iter().copied().collect(),
            near: VecDeque::new(),
            neighbours: Neighbours::default(),
            pace: Pace::new(background, bytes, !trace.is_empty()),
            paused: false,
            cursor: (0, 0),
            passed: 0,
            under_way: HashMap::new(),
        };
        plan.expect(trace);
        plan
    }

    /// Spans that are probably read soon, in this order, behind those expected already.
    pub(crate) fn expect(&mut self, places: impl IntoIterator<Item = Place>) {
        let room = QUEUE_MAX - self.expected.len();
        self.expected.extend(places.into_iter().take(room));
    }

    /// A span was read for the first time.
    pub(crate) fn handle_touch(&mut self, place: Place, missed: bool, now: Instant) {
        let (layer, span) = place;
        self.pace.handle_read(now);
        if self.traced.contains(&place) {
            return;
        }
        if missed {
            self.cursor = (layer, span + 1);
            self.passed = 0;
        }
        let count = self.layers.get(layer).map_or(0, Vec::len);
        let next = self.neighbours.handle_touch(layer, span, missed);
        // The latest read is the best guess: its neighbours go first.
        for span in (next.start.min(count)..next.end.min(count)).rev() {
            self.near.push_front((layer, span));
        }
        self.near.truncate(QUEUE_MAX);
    }

    /// A span came to its end, whoever asked for it.
    pub(crate) fn handle_settled(&mut self, place: Place, arrived: bool, now: Instant) {
        self.under_way.remove(&place);
        if arrived {
            self.pace.handle_arrival();
        } else {
            self.pace.handle_failure(now);
            self.passed = 0;
        }
    }

    /// Whether the background has to stand still, because there is no room for more.
    pub(crate) fn pause_background(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The next span to ask for. `absent` tells whether nobody has it or asked for it; `waiting` is
    /// the count of readers that wait, `bandwidth` what the background may take.
    pub(crate) fn poll_ask(
        &mut self,
        now: Instant,
        waiting: usize,
        bandwidth: &mut Bandwidth,
        absent: &dyn Fn(Place) -> bool,
    ) -> Option<Ask> {
        let ask = self.poll_expected(absent);
        let ask = ask.or_else(|| self.poll_background(now, waiting, bandwidth, absent))?;
        self.under_way.insert(ask.place, ask.priority);
        Some(ask)
    }

    /// True if the background has been everywhere and nothing is under way or expected.
    pub(crate) fn is_done(&self) -> bool {
        let queued = self.expected.is_empty() && self.near.is_empty();
        self.passed >= self.span_count && self.under_way.is_empty() && queued
    }

    fn under_way(&self, priority: Priority) -> usize {
        self.under_way.values().filter(|it| **it == priority).count()
    }

    fn poll_expected(&mut self, absent: &dyn Fn(Place) -> bool) -> Option<Ask> {
        if self.under_way(Priority::Prefetch) >= EXPECTED_MAX {
            return None;
        }
        // What readers do now says more than what they did at an earlier start.
        while let Some(place) = self.near.pop_front().or_else(|| self.expected.pop_front()) {
            if self.len(place).is_some() && absent(place) {
                return Some(Ask { place, priority: Priority::Prefetch });
            }
        }
        None
    }

    fn poll_background(
        &mut self,
        now: Instant,
        waiting: usize,
        bandwidth: &mut Bandwidth,
        absent: &dyn Fn(Place) -> bool,
    ) -> Option<Ask> {
        // Whatever it would take is missed by what is expected.
        let busy = self.under_way(Priority::Prefetch) >= EXPECTED_MAX / 2;
        let under_way = self.under_way(Priority::Background);
        if busy || self.paused || under_way >= self.pace.spans_max(now, waiting) {
            return None;
        }
        while self.passed < self.span_count {
            let Some(len) = self.len(self.cursor) else {
                self.cursor = ((self.cursor.0 + 1) % self.layers.len().max(1), 0);
                continue;
            };
            let place = self.cursor;
            let wanted = absent(place);
            if wanted && !bandwidth.spend(now, u64::from(len)) {
                return None;
            }
            self.cursor.1 += 1;
            self.passed += 1;
            if wanted {
                return Some(Ask { place, priority: Priority::Background });
            }
        }
        None
    }

    fn len(&self, (layer, span): Place) -> Option<u32> {
        self.layers.get(layer)?.get(span).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashSet;
    use std::time::Duration;

    use Background::On as ON;

    /// A plan over two layers of 100 spans, and what has been asked for.
    struct Drive {
        plan: Plan,
        now: Instant,
        gone: RefCell<HashSet<Place>>,
    }

    impl Drive {
        fn new(background: Background, span_bytes: u32, trace: &[Place]) -> Self {
            let layers = vec![vec![span_bytes; 100]; 2];
            let plan = Plan::new(layers, background, trace.to_vec());
            Self { plan, now: Instant::now(), gone: RefCell::default() }
        }

        fn ask(&mut self, waiting: usize) -> Option<(usize, usize, Priority)> {
            let absent = |place| !self.gone.borrow().contains(&place);
            let bandwidth = &mut Bandwidth::new(None);
            let ask = self.plan.poll_ask(self.now, waiting, bandwidth, &absent)?;
            assert!(self.gone.borrow_mut().insert(ask.place), "{ask:?} asked twice");
            Some((ask.place.0, ask.place.1, ask.priority))
        }

        fn asks(&mut self, waiting: usize) -> Vec<(usize, usize, Priority)> {
            std::iter::from_fn(|| self.ask(waiting)).collect()
        }

        fn miss(&mut self, place: Place) {
            self.gone.borrow_mut().insert(place);
            self.plan.handle_touch(place, true, self.now);
        }

        fn settle(&mut self, asks: &[(usize, usize, Priority)]) {
            for (layer, span, _) in asks {
                self.plan.handle_settled((*layer, *span), true, self.now);
            }
        }
    }

    const LARGE: u32 = 20 << 20;

    #[test]
    fn neighbours_then_trace_then_background() {
        let mut drive = Drive::new(ON, LARGE, &[(1, 50), (0, 3), (1, 51), (7, 7), (0, 700)]);
        drive.miss((0, 2));
        let found = drive.asks(1);
        let prefetch = Priority::Prefetch;
        let near = (3..7).map(|span| (0, span, prefetch));
        let expected: Vec<_> = near
            .chain([(1, 50, prefetch), (1, 51, prefetch), (0, 7, Priority::Background)])
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn without_background_only_what_is_expected() {
        let mut drive = Drive::new(Background::Off, 1, &[(1, 50)]);
        assert_eq!(drive.asks(0), [(1, 50, Priority::Prefetch)]);
        drive.miss((0, 97));
        assert_eq!(drive.asks(0).len(), 2, "the layer ends there");
    }

    #[test]
    fn the_background_goes_on_behind_the_last_miss_and_comes_everywhere() {
        let mut drive = Drive::new(ON, LARGE, &[]);
        drive.miss((1, 90));
        let near = drive.asks(0);
        drive.settle(&near);
        let mut order = Vec::new();
        while !drive.plan.is_done() {
            let asks = drive.asks(0);
            assert!(!asks.is_empty() && asks.len() <= 2, "{asks:?}");
            drive.settle(&asks);
            order.extend(asks.iter().map(|ask| (ask.0, ask.1)));
        }
        assert_eq!(order.len(), 200 - 1 - near.len());
        assert_eq!(order[0], (1, 97));
        assert!(order.contains(&(0, 0)) && order.contains(&(1, 89)));
    }

    #[test]
    fn a_failed_span_is_asked_for_again_later() {
        let mut drive = Drive::new(ON, LARGE, &[]);
        let asks = drive.asks(0);
        drive.gone.borrow_mut().remove(&(0, 0));
        drive.plan.handle_settled((0, 0), false, drive.now);
        drive.settle(&asks[1..]);
        assert!(drive.asks(0).is_empty(), "not at once");
        let mut again = false;
        for _ in 0..1000 {
            drive.now += Duration::from_secs(1);
            let asks = drive.asks(0);
            again |= asks.iter().any(|ask| (ask.0, ask.1) == (0, 0));
            drive.settle(&asks);
        }
        assert!(again && drive.plan.is_done());
    }

    #[test]
    fn a_reader_in_order_has_many_spans_under_way_ahead_of_it() {
        let mut drive = Drive::new(ON, LARGE, &[]);
        drive.miss((0, 0));
        drive.asks(1);
        for span in 1..4 {
            drive.plan.handle_touch((0, span), false, drive.now);
            drive.asks(1);
        }
        assert_eq!(drive.plan.under_way(Priority::Prefetch), EXPECTED_MAX);
    }
}
