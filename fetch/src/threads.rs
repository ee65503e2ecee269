//! The thread engine: blocking threads with the same plan and connections, where io_uring is refused.
//!
//! One thread owns the driver, workers move bytes. Workers are started as they are needed, one per
//! request at most, and the plan limits requests.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::net::RecvFlags;

use crate::connection::{Connection, Finished, Step};
use crate::driver::Driver;
use crate::idle::Idle;
use crate::mailbox::Mailbox;
use crate::plan::{Failure, FailureKind, TransferId};
use crate::ring::ShellOptions;
use crate::stats::Counters;
use crate::transfer::{Event, Job, Mover, Supply};

/// No wait of the driver's thread is longer.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// No blocking call of a worker is longer; then it looks at its pace and whether it is still wanted.
const TICK: Duration = Duration::from_millis(250);

/// A stream that gets no memory for so long is given up; the plan stops it much earlier.
const SUPPLY_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long the engine's end waits for workers that are in a system call.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// What the driver's thread waits for.
pub(crate) enum Signal {
    /// The mailbox has something.
    Wake,
    /// A worker has news.
    Event(Event),
}

/// Run the engine until the mailbox closes.
pub(crate) fn run(
    signals: (Sender<Signal>, Receiver<Signal>),
    mut driver: Driver,
    mailbox: &Mailbox,
    counters: Arc<Counters>,
    options: ShellOptions,
    workers_max: usize,
) {
    let (signals, inbox) = signals;
    let (done, ended) = bounded(workers_max);
    let shared =
        Shared { signals, idle: Mutex::new(Idle::new(options.idle_max)), counters, options };
    let (jobs, queue) = bounded(workers_max);
    let shared = Arc::new(shared);
    let mut pool =
        Workers { shared, jobs, queue, done, count: 0, workers_max, controls: BTreeMap::new() };
    while mailbox.is_open() {
        let begun = Instant::now();
        for command in mailbox.take() {
            driver.command(command, begun);
        }
        driver.pump(&mut pool, begun);
        let now = Instant::now();
        pool.shared.counters.busy_ns.add(u64::try_from((now - begun).as_nanos()).unwrap_or(0));
        let until = driver.poll_timeout().map(|at| at.saturating_duration_since(now));
        match inbox.recv_timeout(until.unwrap_or(WAIT_MAX).min(WAIT_MAX)) {
            Ok(signal) => pool.signal(signal, &mut driver),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while let Ok(signal) = inbox.try_recv() {
            pool.signal(signal, &mut driver);
        }
    }
    driver.stop();
    for command in mailbox.take() {
        driver.command(command, Instant::now());
    }
    driver.stop();
    pool.stop(&inbox, &ended);
}

struct Shared {
    signals: Sender<Signal>,
    idle: Mutex<Idle<(Connection, TcpStream)>>,
    counters: Arc<Counters>,
    options: ShellOptions,
}

/// The driver's side of the workers.
struct Workers {
    shared: Arc<Shared>,
    jobs: Sender<(Job, Arc<Control>)>,
    queue: Receiver<(Job, Arc<Control>)>,
    done: Sender<()>,
    count: usize,
    workers_max: usize,
    controls: BTreeMap<TransferId, Arc<Control>>,
}

/// The driver's hold on one transfer.
struct Control {
    abandoned: AtomicBool,
    socket: Mutex<Option<TcpStream>>,
    supplies: (Sender<Supply>, Receiver<Supply>),
}

impl Control {
    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// End the transfer, also if its worker blocks on the socket.
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = &*socket {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Mover for Workers {
    fn start(&mut self, job: Job) {
        let control = Arc::new(Control {
            abandoned: AtomicBool::new(false),
            socket: Mutex::new(None),
            supplies: bounded(1),
        });
        self.controls.insert(job.id, Arc::clone(&control));
        if self.controls.len() > self.count && self.count < self.workers_max {
            self.hire();
        }
        let sent = self.jobs.try_send((job, control));
        assert!(sent.is_ok(), "more jobs than the plan may start");
    }

    fn supply(&mut self, id: TransferId, supply: Supply) {
        if let Some(control) = self.controls.get(&id) {
            let sent = control.supplies.0.try_send(supply);
            assert!(sent.is_ok(), "{id:?} is fed before it is hungry again");
        }
    }

    fn abandon(&mut self, id: TransferId) {
        if let Some(control) = self.controls.get(&id) {
            control.abandon();
        }
    }
}

impl Workers {
    fn signal(&mut self, signal: Signal, driver: &mut Driver) {
        let Signal::Event(event) = signal else { return };
        if let Event::Ended { id, .. } = &event {
            self.controls.remove(id);
        }
        driver.event(event, Instant::now());
    }

    fn hire(&mut self) {
        let (shared, queue) = (Arc::clone(&self.shared), self.queue.clone());
        let done = self.done.clone();
        let work = move || {
            while let Ok((job, control)) = queue.recv() {
                shared.work(job, &control);
            }
            let _ = done.send(());
        };
        let name = format!("spanfs-fetch-{}", self.count);
        match std::thread::Builder::new().name(name).spawn(work) {
            Ok(_) => self.count += 1,
            // With at least one worker the job waits for it; with none it must fail, and later wants
            // with it, until there are threads again.
            Err(error) => tracing::error!("cannot start a fetch thread: {error}"),
        }
    }

    fn stop(self, inbox: &Receiver<Signal>, ended: &Receiver<()>) {
        self.controls.values().for_each(|control| control.abandon());
        drop((self.jobs, self.queue, self.done));
        let end = Instant::now() + STOP_WAIT;
        let mut left = self.count;
        while left > 0 && Instant::now() < end {
            // Workers must not block on news that nobody reads.
            while inbox.try_recv().is_ok() {}
            match ended.recv_timeout(Duration::from_millis(10)) {
                Ok(()) => left -= 1,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }
}

impl Shared {
    fn tell(&self, event: Event) {
        // Fails only after the engine's end.
        let _ = self.signals.send(Signal::Event(event));
    }

    /// Do one job to its end.
    fn work(&self, job: Job, control: &Control) {
        let id = job.id;
        let kept = self.idle().take(&job.target, Instant::now());
        let job = match kept {
            None => job,
            Some((mut connection, socket)) => {
                connection.begin(job, Instant::now());
                let finished = self.exchange(id, &mut connection, &socket, control);
                let failed = finished.result.is_err() && !finished.answered;
                if !failed || control.is_abandoned() {
                    return self.finish(id, connection, socket, finished);
                }
                // The server closed it while it was idle: that is nobody's failure.
                connection.take_job(id)
            }
        };
        match self.connect(&job, control) {
            Err(failure) => {
                self.tell(Event::Ended { id, segments: job.segments, result: Err(failure) });
            }
            Ok(socket) => {
                let now = Instant::now();
                let target = Arc::clone(&job.target);
                let mut connection = Connection::open(target, self.options.pace, now);
                connection.begin(job, now);
                let finished = self.exchange(id, &mut connection, &socket, control);
                self.finish(id, connection, socket, finished);
            }
        }
    }

    fn connect(&self, job: &Job, control: &Control) -> Result<TcpStream, Failure> {
        let mut last = "no address".to_owned();
        for address in &job.target.addresses {
            if control.is_abandoned() {
                return Err(Failure::new(FailureKind::Abandoned, "abandoned"));
            }
            let opened = TcpStream::connect_timeout(address, self.options.connect_timeout);
            let ready = opened.and_then(|socket| {
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(TICK))?;
                socket.set_write_timeout(Some(TICK))?;
                Ok(socket)
            });
            match ready {
                Ok(socket) => {
                    self.counters.connections.add(1);
                    return Ok(socket);
                }
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(Failure::transport(format!("connecting to {}: {last}", job.target.host)))
    }

    /// Drive the connection until its exchange is over.
    fn exchange(
        &self,
        id: TransferId,
        connection: &mut Connection,
        socket: &TcpStream,
        control: &Control,
    ) -> Finished {
        *control.socket.lock().unwrap_or_else(PoisonError::into_inner) = socket.try_clone().ok();
        loop {
            if control.is_abandoned() {
                connection.fail(Failure::new(FailureKind::Abandoned, "abandoned"));
            }
            let step = connection.next();
            let bytes = connection.take_moved();
            if bytes > 0 {
                self.tell(Event::Moved { id, bytes });
            }
            for segment in connection.take_filled() {
                self.tell(Event::Filled { id, segment });
            }
            match step {
                Step::Send { buffer, from } => {
                    let result = (&*socket).write(buffer.get(from..).unwrap_or_default());
                    connection.sent(buffer, from, result);
                }
                Step::Receive { mut buffer, from, len, all } => {
                    let end = buffer.len().min(from.saturating_add(len));
                    let flags = if all { RecvFlags::WAITALL } else { RecvFlags::empty() };
                    let room = buffer.get_mut(from..end).unwrap_or_default();
                    let result = rustix::net::recv(socket, room, flags);
                    let result = result.map(|(count, _)| count).map_err(std::io::Error::from);
                    connection.received(buffer, result, Instant::now());
                }
                Step::Hungry(position) => {
                    self.tell(Event::Hungry { id, position });
                    match control.supplies.1.recv_timeout(SUPPLY_WAIT_MAX) {
                        Ok(Supply::Segment(segment)) => {
                            connection.supply(segment, Instant::now());
                        }
                        Ok(Supply::Stop) => connection.stop(),
                        Err(_) => connection.fail(Failure::transport("nobody feeds the stream")),
                    }
                }
                Step::Finished(finished) => {
                    *control.socket.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return finished;
                }
            }
            connection.check_pace(Instant::now());
        }
    }

    fn finish(
        &self,
        id: TransferId,
        mut connection: Connection,
        socket: TcpStream,
        finished: Finished,
    ) {
        let segments = connection.take_segments();
        if finished.reusable {
            let target = Arc::clone(connection.target());
            self.idle().give(target, (connection, socket), Instant::now());
        }
        self.tell(Event::Ended { id, segments, result: finished.result });
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Idle<(Connection, TcpStream)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
