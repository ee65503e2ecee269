//! The plan against a simulated network: any mix of wants, faults and times keeps its promises.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::retry::{Random, RetryOptions};

const SIZE: u64 = 10_000;

fn options() -> PlanOptions {
    PlanOptions {
        inflight_bytes_max: 6000,
        connections_max: 4,
        connections_demand: 1,
        piece_bytes: 256,
        join_bytes: 500,
        transfer_bytes_max: 2000,
        progress_bytes_min: 50,
        stream_idle: Duration::from_millis(500),
        retry: RetryOptions { deadline: Duration::from_secs(20), ..RetryOptions::default() },
        ..PlanOptions::default()
    }
}

/// The plan with two blobs, their network, and the model of what it promises.
struct World {
    plan: Plan,
    now: Instant,
    random: Random,
    /// Requests on the network: position and end of each.
    network: BTreeMap<TransferId, Flow>,
    /// Bytes of each want that are in its memory.
    wants: BTreeMap<WantId, (BlobId, Range<u64>, RangeSet)>,
    replies: BTreeMap<WantId, Result<(), GaveUp>>,
    fault_per_mille: u64,
    ranges: bool,
    starts: Vec<(TransferId, Range<u64>)>,
}

struct Flow {
    segments: VecDeque<(WantId, Range<u64>)>,
    whole: bool,
    position: u64,
    hungry: bool,
}

impl World {
    fn new(seed: u64, fault_per_mille: u64, ranges: bool, options: PlanOptions) -> Self {
        let mut plan = Plan::new(options);
        plan.handle_open(BlobId(1), SIZE);
        plan.handle_open(BlobId(2), SIZE);
        Self {
            plan,
            now: Instant::now(),
            random: Random(seed),
            network: BTreeMap::new(),
            wants: BTreeMap::new(),
            replies: BTreeMap::new(),
            fault_per_mille,
            ranges,
            starts: Vec::new(),
        }
    }

    fn want(&mut self, id: u64, blob: u64, range: Range<u64>, priority: Priority) {
        let (id, blob) = (WantId(id), BlobId(blob));
        self.wants.insert(id, (blob, range.clone(), RangeSet::default()));
        self.plan.handle_want(id, blob, range, priority, self.now);
        self.act();
    }

    /// Do what the plan wishes, and check it.
    fn act(&mut self) {
        while let Some(action) = self.plan.poll_action(self.now) {
            match action {
                Action::Locate { blob, generation, .. } => {
                    let host = "h".to_owned();
                    let located =
                        Located { host, expires: None, changed: self.random.below(2) == 0 };
                    let result = match self.random.below(1000) < self.fault_per_mille {
                        true => Err(GaveUp { class: Class::Retry, message: "busy".into() }),
                        false => Ok(located),
                    };
                    assert!(self.plan.handle_located(blob, generation, result, self.now));
                }
                Action::Start(start) => {
                    assert!(!start.range.is_empty());
                    if !start.whole {
                        let mut position = start.range.start;
                        for (_, range) in &start.segments {
                            assert_eq!(range.start, position, "segments abut");
                            position = range.end;
                        }
                        assert_eq!(position, start.range.end);
                    }
                    self.starts.push((start.id, start.range.clone()));
                    let flow = Flow {
                        segments: start.segments.into(),
                        whole: start.whole,
                        position: start.range.start,
                        hungry: false,
                    };
                    self.network.insert(start.id, flow);
                }
                Action::Abandon(id) => {
                    self.network.remove(&id);
                    let failure = Failure::new(FailureKind::Abandoned, "");
                    self.plan.handle_ended(id, Err(failure), self.now);
                }
                Action::Feed(id, Feed::Stop) => {
                    self.network.remove(&id);
                    self.plan.handle_ended(id, Ok(()), self.now);
                }
                Action::Feed(id, Feed::Segment(want, range)) => {
                    let flow = self.network.get_mut(&id).unwrap();
                    assert!(range.start >= flow.position);
                    flow.hungry = false;
                    flow.segments.push_back((want, range));
                }
                Action::Reply(id, result) => {
                    if result.is_ok() {
                        let (_, range, got) = &self.wants[&id];
                        assert_eq!(*got, RangeSet::from(range.clone()), "{id:?} lacks bytes");
                    }
                    assert!(self.replies.insert(id, result).is_none(), "{id:?} replied twice");
                }
            }
        }
        assert!(self.plan.inflight_bytes() <= self.plan.options.inflight_bytes_max);
        assert!(self.network.len() <= self.plan.options.connections_max);
    }

    /// Let one request advance, or time pass. False once nothing is left to happen.
    fn step(&mut self) -> bool {
        let moving: Vec<TransferId> =
            self.network.iter().filter(|(_, flow)| !flow.hungry).map(|(&id, _)| id).collect();
        if moving.is_empty() {
            let Some(at) = self.plan.poll_timeout() else { return false };
            assert!(at <= self.now + Duration::from_secs(4000));
            self.now = self.now.max(at);
            self.plan.handle_timeout(self.now);
            self.act();
            return true;
        }
        self.now += Duration::from_millis(self.random.below(20));
        let id = moving[self.random.below(moving.len() as u64) as usize];
        self.advance(id);
        self.act();
        true
    }

    fn advance(&mut self, id: TransferId) {
        let fault = self.random.below(1000) < self.fault_per_mille;
        let flow = self.network.get_mut(&id).unwrap();
        if !flow.whole && !self.ranges {
            self.network.remove(&id);
            let failure = Failure::new(FailureKind::NoRanges, "no ranges");
            return self.plan.handle_ended(id, Err(failure), self.now);
        }
        let Some((want, range)) = flow.segments.pop_front() else {
            if flow.whole && flow.position < SIZE {
                flow.hungry = true;
                return self.plan.handle_hungry(id, flow.position, self.now);
            }
            self.network.remove(&id);
            return self.plan.handle_ended(id, Ok(()), self.now);
        };
        // All of the segment, or, before a failure, part of it.
        let len = range.end - range.start;
        let count = if fault { self.random.below(len) } else { len };
        let part = range.start..range.start + count;
        flow.position = part.end;
        if count > 0 {
            self.plan.handle_moved(id, count);
            let copies = self.plan.handle_filled(id, want, part.clone(), self.now);
            for (want, part) in copies.into_iter().chain([(want, part)]) {
                let (_, _, got) = self.wants.get_mut(&want).unwrap();
                assert!(!got.overlaps(part.clone()), "{want:?} gets {part:?} twice");
                got.insert(part);
            }
        }
        if fault {
            self.network.remove(&id);
            let kinds =
                [FailureKind::Transport, FailureKind::Status(503), FailureKind::Status(401)];
            let kind = kinds[self.random.below(3) as usize];
            self.plan.handle_ended(id, Err(Failure::new(kind, "fault")), self.now);
        }
    }

    fn finish(&mut self) {
        for steps in 0.. {
            assert!(steps < 200_000, "the plan never rests");
            if !self.step() {
                break;
            }
        }
        let wanted: BTreeSet<_> = self.wants.keys().collect();
        assert_eq!(self.replies.keys().collect::<BTreeSet<_>>(), wanted, "every want is replied");
        assert_eq!(self.plan.inflight_bytes(), 0);
        assert_eq!(self.plan.transfers_count(), 0);
    }
}

fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Background), Just(Priority::Prefetch), Just(Priority::OnDemand)]
}

proptest! {
    /// Budget, one request per byte, exactly one reply, nothing for ever: asserted by the world.
    #[test]
    fn keeps_its_promises(
        seed in any::<u64>(),
        fault_per_mille in 0u64..400,
        ranges in prop::bool::weighted(0.7),
        script in prop::collection::vec(
            (1u64..3, 0..SIZE, 1u64..4000, priority(), 0u8..20, 0u8..30), 1..60),
    ) {
        let mut world = World::new(seed, fault_per_mille, ranges, options());
        for (index, (blob, start, len, priority, deed, steps)) in script.into_iter().enumerate() {
            let id = index as u64 + 1;
            world.want(id, blob, start..(start + len).min(SIZE), priority);
            let other = WantId(id.saturating_sub(u64::from(deed) / 2));
            match deed {
                0..3 => world.plan.handle_cancel(other),
                3..6 => world.plan.handle_promote(other, Priority::OnDemand),
                _ => {}
            }
            world.act();
            for _ in 0..steps {
                world.step();
            }
        }
        world.finish();
        if fault_per_mille == 0 {
            let failed = |result: &Result<(), GaveUp>| {
                matches!(result, Err(gave_up) if gave_up.class != Class::Cancelled)
            };
            prop_assert!(!world.replies.values().any(failed), "{:?}", world.replies);
        }
    }
}

fn ranges_of(world: &World) -> Vec<Range<u64>> {
    world.starts.iter().map(|(_, range)| range.clone()).collect()
}

#[test]
fn on_demand_is_cut_and_goes_first() {
    let mut world = World::new(1, 0, true, options());
    world.plan.handle_want(WantId(1), BlobId(1), 0..3000, Priority::Background, world.now);
    world.plan.handle_want(WantId(2), BlobId(2), 0..1024, Priority::OnDemand, world.now);
    world.wants.insert(WantId(1), (BlobId(1), 0..3000, RangeSet::default()));
    world.wants.insert(WantId(2), (BlobId(2), 0..1024, RangeSet::default()));
    world.act();
    assert_eq!(ranges_of(&world), [0..256, 256..512, 512..768, 768..1024]);
    world.finish();
}

#[test]
fn small_neighbours_share_a_request() {
    let mut world = World::new(1, 0, true, options());
    for (id, start) in [(1, 0), (2, 200), (3, 400), (4, 600)] {
        let range = start..start + 200;
        world.plan.handle_want(WantId(id), BlobId(1), range.clone(), Priority::Prefetch, world.now);
        world.wants.insert(WantId(id), (BlobId(1), range, RangeSet::default()));
    }
    world.act();
    assert_eq!(ranges_of(&world), [0..600, 600..800]);
    world.finish();
}

#[test]
fn background_keeps_to_its_rate_and_connections() {
    let capped = PlanOptions { background_rate: Some(1000), ..options() };
    let mut world = World::new(1, 0, true, capped);
    let begun = world.now;
    world.want(1, 1, 0..3000, Priority::Background);
    world.want(2, 1, 3000..6000, Priority::Background);
    world.finish();
    let took = world.now - begun;
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");

    let mut world = World::new(1, 0, true, options());
    world.want(1, 2, 0..100, Priority::OnDemand);
    for id in 2..5 {
        world.want(id, 1, id * 600..id * 600 + 550, Priority::Background);
    }
    assert_eq!(world.network.len(), 2, "one on-demand request and one in the background");
    world.finish();
}

#[test]
fn promotion_overtakes() {
    let mut world = World::new(1, 0, true, options());
    for id in 1..6 {
        world.want(id, 1, id * 1000..id * 1000 + 900, Priority::Background);
    }
    let before = world.starts.len();
    world.plan.handle_promote(WantId(5), Priority::OnDemand);
    world.act();
    assert_eq!(world.starts[before].1.start, 5000);
    world.finish();
}

#[test]
fn a_target_that_lies_is_left_once() {
    let mut plan = Plan::new(options());
    let now = Instant::now();
    let blob = BlobId(1);
    plan.handle_open(blob, SIZE);
    let asked = |plan: &mut Plan, now| {
        let actions = std::iter::from_fn(|| plan.poll_action(now));
        let locate = |action| match action {
            Action::Locate { generation, failure, .. } => Some((generation, failure.is_some())),
            _ => None,
        };
        actions.filter_map(locate).collect::<Vec<_>>()
    };
    let located = || Ok(Located { host: "h".to_owned(), expires: None, changed: true });
    // Nobody has brought anything yet.
    plan.handle_distrust(blob, now);
    assert_eq!(asked(&mut plan, now), []);
    plan.handle_want(WantId(1), blob, 0..100, Priority::OnDemand, now);
    assert_eq!(asked(&mut plan, now), [(0, false)]);
    plan.handle_located(blob, 0, located(), now);
    plan.handle_distrust(blob, now);
    assert_eq!(asked(&mut plan, now), [(1, true)]);
    plan.handle_located(blob, 1, located(), now);
    // More of what the first one had under way.
    plan.handle_distrust(blob, now + DISTRUST_MEMORY / 2);
    assert_eq!(asked(&mut plan, now), []);
    plan.handle_distrust(blob, now + DISTRUST_MEMORY);
    assert_eq!(asked(&mut plan, now + DISTRUST_MEMORY), [(2, true)]);
}

const DISTRUST_MEMORY: Duration = Duration::from_secs(2);

#[test]
fn requests_that_a_target_refuses_together_count_once() {
    let now = Instant::now();
    let mut plan = Plan::new(PlanOptions { connections_demand: 0, ..options() });
    plan.handle_open(BlobId(1), SIZE);
    for id in 0..4 {
        plan.handle_want(
            WantId(id),
            BlobId(1),
            id * 1000..(id + 1) * 1000,
            Priority::Prefetch,
            now,
        );
    }
    let mut starts = Vec::new();
    while let Some(action) = plan.poll_action(now) {
        match action {
            Action::Locate { blob, generation, .. } => {
                let located = Located { host: "mirror".to_owned(), expires: None, changed: true };
                assert!(plan.handle_located(blob, generation, Ok(located), now));
            }
            Action::Start(start) => starts.push(start.id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(starts.len(), 4);
    for id in starts {
        let gone = Failure::new(FailureKind::Status(404), "not here");
        plan.handle_ended(id, Err(gone), now);
    }
    // The next one is asked for, and no want is given up.
    let told = plan.poll_action(now);
    assert!(matches!(told, Some(Action::Locate { failure: Some(_), .. })), "{told:?}");
    assert!(plan.poll_action(now).is_none());
}

/// The bytes that come each time are kept, but three times in a row is enough, however few they are.
#[test]
fn a_target_that_drips_is_left() {
    let check = |bytes: u64, expected: bool| {
        let mut now = Instant::now();
        let mut plan = Plan::new(PlanOptions { inflight_bytes_max: 1 << 30, ..options() });
        plan.handle_open(BlobId(1), 1 << 30);
        let want = Priority::OnDemand;
        plan.handle_want(WantId(1), BlobId(1), 0..2000, want, now);
        let mut is_left = false;
        for _ in 0..DRIPS {
            let mut under_way = Vec::new();
            while let Some(action) = plan.poll_action(now) {
                match action {
                    Action::Locate { blob, generation, failure } => {
                        is_left |= failure.is_some();
                        let host = "mirror".to_owned();
                        let located = Located { host, expires: None, changed: true };
                        assert!(plan.handle_located(blob, generation, Ok(located), now));
                    }
                    Action::Start(start) => under_way.push(start.id),
                    other => panic!("{other:?}"),
                }
            }
            assert!(!under_way.is_empty(), "nothing is asked for");
            for id in under_way.into_iter().take(1) {
                plan.handle_moved(id, bytes);
                now += Duration::from_secs(5);
                plan.handle_ended(id, Err(Failure::transport("stalled")), now);
            }
        }
        while let Some(action) = plan.poll_action(now) {
            is_left |= matches!(action, Action::Locate { failure: Some(_), .. });
        }
        assert_eq!(is_left, expected, "{bytes} bytes at a time");
    };
    check(60, true);
    check(1 << 20, false);
}

const DRIPS: usize = 3;
