//! The ring engine: one thread, one io_uring, every connection.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::connection::{Connection, Finished, PaceLimits, Step};
use crate::driver::Driver;
use crate::idle::Idle;
use crate::mailbox::Mailbox;
use crate::plan::{Failure, FailureKind, TransferId};
use crate::stats::Counters;
use crate::sys::{Completion, Op, OpId, Ring};
use crate::target::Target;
use crate::transfer::{Event, Job, Mover, Supply};

/// No wait is longer, so that no mistake in a deadline lasts.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Between two looks at a receive that has not completed.
const POKE_PAUSE: Duration = Duration::from_millis(500);

/// Token of the wake-up; transfers count from 1.
const WAKE: u64 = 0;

/// Bit that tells connections opened ahead, which have no transfer, from transfers.
const AHEAD: u64 = 1 << 63;

/// How the shell treats its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShellOptions {
    pub(crate) connect_timeout: Duration,
    pub(crate) pace: PaceLimits,
    pub(crate) idle_max: usize,
}

/// Run the engine until the mailbox closes.
pub(crate) fn run(
    ring: Ring,
    event: Arc<OwnedFd>,
    mut driver: Driver,
    mailbox: &Mailbox,
    counters: Arc<Counters>,
    options: ShellOptions,
) {
    let mut shell = Shell {
        ring,
        live: BTreeMap::new(),
        idle: Idle::new(options.idle_max),
        events: VecDeque::new(),
        counters,
        options,
        now: Instant::now(),
        ahead_next: 0,
    };
    shell.ring.submit(WAKE, Op::Wake { event: Arc::clone(&event), count: Box::new([0; 8]) });
    let mut completions = Vec::new();
    while mailbox.is_open() {
        let begun = Instant::now();
        shell.now = begun;
        for command in mailbox.take() {
            driver.command(command, shell.now);
        }
        shell.settle(&mut driver);
        let until = [driver.poll_timeout(), shell.poll_timeout()].into_iter().flatten().min();
        let now = Instant::now();
        shell.counters.busy_ns.add(u64::try_from((now - begun).as_nanos()).unwrap_or(0));
        let wait = until.map_or(WAIT_MAX, |at| at.saturating_duration_since(now).min(WAIT_MAX));
        if let Err(error) = shell.ring.wait(wait, &mut completions) {
            tracing::error!("the ring engine stops: io_uring_enter: {error}");
            mailbox.close();
        }
        let begun = Instant::now();
        shell.now = begun;
        for completion in completions.drain(..) {
            match completion.op {
                Op::Wake { event, count } => {
                    shell.ring.submit(WAKE, Op::Wake { event, count });
                }
                _ => shell.complete(completion),
            }
        }
        shell.check_paces();
        shell.settle(&mut driver);
        shell.counters.busy_ns.add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(0));
    }
    driver.stop();
    for command in mailbox.take() {
        driver.command(command, shell.now);
    }
    driver.stop();
}

struct Shell {
    ring: Ring,
    live: BTreeMap<TransferId, Live>,
    idle: Idle<(Connection, Arc<OwnedFd>)>,
    events: VecDeque<Event>,
    counters: Arc<Counters>,
    options: ShellOptions,
    now: Instant,
    ahead_next: u64,
}

/// A transfer under way.
struct Live {
    connection: Connection,
    phase: Phase,
    /// The operation the kernel works on, if any.
    op: Option<OpId>,
    /// It has been asked to end early, at this time.
    poked: Option<Instant>,
    abandoned: bool,
}

enum Phase {
    /// Trying the target's addresses, from this index on; the request waits.
    /// Without a request the connection is opened ahead, and idle once it is there.
    Connecting { index: usize, until: Instant, job: Option<Job> },
    /// Connected; on a connection that had served before, or a new one.
    Connected { socket: Arc<OwnedFd>, reused: bool },
}

impl Mover for Shell {
    fn start(&mut self, job: Job) {
        match self.idle.take(&job.target, self.now) {
            Some((mut connection, socket)) => {
                let id = job.id;
                connection.begin(job, self.now);
                let phase = Phase::Connected { socket, reused: true };
                self.insert(id, connection, phase);
                self.drive(id);
            }
            None => self.connect_for(job, false),
        }
    }

    fn supply(&mut self, id: TransferId, supply: Supply) {
        let Some(live) = self.live.get_mut(&id) else { return };
        match supply {
            Supply::Segment(segment) => live.connection.supply(segment, self.now),
            Supply::Stop => live.connection.stop(),
        }
        self.drive(id);
    }

    fn open_ahead(&mut self, target: &Arc<Target>, count: usize) {
        for _ in self.idle.count(target)..count.min(self.options.idle_max) {
            self.ahead_next += 1;
            let id = TransferId(AHEAD | self.ahead_next);
            self.connect(id, target, None, false);
        }
    }

    fn abandon(&mut self, id: TransferId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.abandoned = true;
        match live.op {
            Some(op) => self.ring.cancel(op),
            None => self.drive(id),
        }
    }
}

impl Shell {
    /// Let driver and connections talk until both have nothing to say.
    fn settle(&mut self, driver: &mut Driver) {
        loop {
            while let Some(event) = self.events.pop_front() {
                driver.event(event, self.now);
            }
            let now = self.now;
            driver.pump(self, now);
            if self.events.is_empty() {
                break;
            }
        }
    }

    fn insert(&mut self, id: TransferId, connection: Connection, phase: Phase) {
        let live = Live { connection, phase, op: None, poked: None, abandoned: false };
        let replaced = self.live.insert(id, live);
        assert!(replaced.is_none(), "transfer {id:?} came twice");
    }

    fn connect_for(&mut self, job: Job, abandoned: bool) {
        let (id, target) = (job.id, Arc::clone(&job.target));
        self.connect(id, &target, Some(job), abandoned);
    }

    /// Open a socket and begin to connect.
    fn connect(&mut self, id: TransferId, target: &Arc<Target>, job: Option<Job>, abandoned: bool) {
        let connection = Connection::open(Arc::clone(target), self.options.pace, self.now);
        let until = self.now + self.options.connect_timeout;
        self.insert(id, connection, Phase::Connecting { index: 0, until, job });
        if let Some(live) = self.live.get_mut(&id) {
            live.abandoned = abandoned;
        }
        self.try_address(id, "no address".to_owned());
    }

    /// Try the address at the phase's index; `last` tells how the one before it failed.
    fn try_address(&mut self, id: TransferId, mut last: String) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Phase::Connecting { index, until, .. } = &mut live.phase else { return };
        let target = Arc::clone(live.connection.target());
        while let Some(address) = target.addresses.get(*index) {
            if live.abandoned {
                break;
            }
            let family = match address {
                std::net::SocketAddr::V4(_) => AddressFamily::INET,
                std::net::SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let flags = SocketFlags::CLOEXEC;
            match rustix::net::socket_with(family, SocketType::STREAM, flags, None) {
                Ok(socket) => {
                    // Requests are small and single: nothing is gained by waiting for more.
                    let _ = sockopt::set_tcp_nodelay(&socket, true);
                    let address = Box::new((*address).into());
                    let op = Op::Connect { socket: Arc::new(socket), address };
                    *until = self.now + self.options.connect_timeout;
                    live.op = Some(self.ring.submit(id.0, op));
                    return;
                }
                Err(error) => last = format!("socket for {address}: {error}"),
            }
            *index += 1;
        }
        let failure = if live.abandoned {
            Failure::new(FailureKind::Abandoned, "abandoned")
        } else {
            Failure::transport(format!("connecting to {}: {last}", target.host))
        };
        // Opened ahead it fails nobody: a request that comes will find out for itself.
        if let Some(Live { phase: Phase::Connecting { job: Some(job), .. }, .. }) =
            self.live.remove(&id)
        {
            let (segments, result) = (job.segments, Err(failure));
            self.events.push_back(Event::Ended { id, segments, result });
        }
    }

    fn complete(&mut self, completion: Completion) {
        let id = TransferId(completion.token);
        let now = self.now;
        let Some(live) = self.live.get_mut(&id) else { return };
        live.op = None;
        live.poked = None;
        match completion.op {
            Op::Connect { socket, address } => {
                let result = completion.result.map(|_| socket);
                return self.connected(id, result, &address);
            }
            Op::Send { buffer, from, .. } => live.connection.sent(buffer, from, completion.result),
            Op::Receive { buffer, .. } => live.connection.received(buffer, completion.result, now),
            Op::Wake { .. } => {}
        }
        live.connection.check_pace(now);
        self.drive(id);
    }

    fn connected(
        &mut self,
        id: TransferId,
        result: std::io::Result<Arc<OwnedFd>>,
        address: &rustix::net::SocketAddrAny,
    ) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Phase::Connecting { index, .. } = &mut live.phase else { return };
        match result {
            Ok(socket) if !live.abandoned => {
                self.counters.connections.add(1);
                let phase = Phase::Connected { socket, reused: false };
                let before = std::mem::replace(&mut live.phase, phase);
                if let Phase::Connecting { job: Some(job), .. } = before {
                    live.connection.begin(job, self.now);
                    self.drive(id);
                } else if let Some(Live {
                    connection,
                    phase: Phase::Connected { socket, .. },
                    ..
                }) = self.live.remove(&id)
                {
                    let target = Arc::clone(connection.target());
                    self.idle.give(target, (connection, socket), self.now);
                }
            }
            Ok(_) => self.try_address(id, String::new()),
            Err(error) => {
                *index += 1;
                let error = match error.kind() {
                    std::io::ErrorKind::Interrupted => "timed out".to_owned(),
                    _ => error.to_string(),
                };
                let address = std::net::SocketAddr::try_from(address.clone());
                let address = address.map_or_else(|_| "?".to_owned(), |a| a.to_string());
                self.try_address(id, format!("{address}: {error}"));
            }
        }
    }

    /// Submit what the connection wants next, and tell what has happened.
    fn drive(&mut self, id: TransferId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        if live.op.is_some() {
            return;
        }
        let Phase::Connected { socket, .. } = &live.phase else { return };
        if live.abandoned {
            live.connection.fail(Failure::new(FailureKind::Abandoned, "abandoned"));
        }
        let socket = Arc::clone(socket);
        let step = live.connection.next();
        let bytes = live.connection.take_moved();
        if bytes > 0 {
            self.events.push_back(Event::Moved { id, bytes });
        }
        for segment in live.connection.take_filled() {
            self.events.push_back(Event::Filled { id, segment });
        }
        match step {
            Step::Send { buffer, from } => {
                live.op = Some(self.ring.submit(id.0, Op::Send { socket, buffer, from }));
            }
            Step::Receive { buffer, from, len, all } => {
                let op = Op::Receive { socket, buffer, from, len, all };
                live.op = Some(self.ring.submit(id.0, op));
            }
            Step::Hungry(position) => self.events.push_back(Event::Hungry { id, position }),
            Step::Finished(finished) => self.finish(id, finished),
        }
    }

    fn finish(&mut self, id: TransferId, finished: Finished) {
        let Some(Live { mut connection, phase, abandoned, .. }) = self.live.remove(&id) else {
            return;
        };
        let Phase::Connected { socket, reused } = phase else { return };
        if reused && !finished.answered && finished.result.is_err() && !abandoned {
            // The server closed it while it was idle: that is nobody's failure.
            return self.connect_for(connection.take_job(id), abandoned);
        }
        let segments = connection.take_segments();
        if finished.reusable {
            let target = Arc::clone(connection.target());
            self.idle.give(target, (connection, socket), self.now);
        }
        self.events.push_back(Event::Ended { id, segments, result: finished.result });
    }

    /// When `check_paces` has something to do.
    fn poll_timeout(&self) -> Option<Instant> {
        let live = self.live.values().filter_map(Live::check_at);
        live.chain(self.idle.expires_at()).min()
    }

    /// Interrupt operations that take long, to see whether anything has come.
    fn check_paces(&mut self) {
        self.idle.expire(self.now);
        for live in self.live.values_mut() {
            let late = live.check_at().is_some_and(|at| at <= self.now);
            if let (true, Some(op)) = (late, live.op) {
                live.poked = Some(self.now);
                self.ring.cancel(op);
            }
        }
    }
}

impl Live {
    fn check_at(&self) -> Option<Instant> {
        self.op?;
        let at = match &self.phase {
            Phase::Connecting { until, .. } => *until,
            Phase::Connected { .. } => self.connection.pace_at(),
        };
        Some(self.poked.map_or(at, |poked| at.max(poked + POKE_PAUSE)))
    }
}
