//! Where the blob's pieces wait for the thread that scans them, and for helpers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use spanfs_layer::ztoc::Compression;

use super::ahead::{Decoded, Rooms, decode};
use super::backlog::{Arrival, Backlog, Piece, Progress, Shape, Task};
use super::frames::{self, DecodedRun, Frames, RUN_STRETCHES_MAX, RunTask};
use super::spent::Spent;
use super::{BuildError, STOP_POLL};
use crate::deflate::Place;
use crate::inflate::{self, Crew, Decoder, Turn};

/// Shared by who feeds, who scans, and helpers.
pub(super) struct Feed {
    state: Mutex<State>,
    changed: Condvar,
    /// Nobody wants the layer any more, or the scan has ended.
    pub(super) is_given_up: Arc<AtomicBool>,
    pub(super) rooms: Rooms,
    /// For frames that are decoded ahead.
    buffers: frames::Buffers,
}

struct State {
    backlog: Backlog,
    /// Those of a zstd blob; then nothing else is decoded ahead.
    frames: Option<Frames>,
    crew: Option<Crew>,
    /// The scan's, while it works.
    turn: Option<Turn>,
    /// Helpers asked for, of which `asked` have not begun.
    helpers: usize,
    asked: usize,
}

/// Threads from which on helpers are of use. On two cores hashing, writing and the network take what the
/// scan leaves, and a pull takes 1.1 times as long, for pages and symbols cost more than is won; of zstd's frames
/// a pass takes 1.02 to 1.09 times as long.
const CORES_MIN: usize = 4;

/// Helpers of one layer: from there on the digest of the tar, which one core makes in order, is what
/// all wait for.
const HELPERS_MAX: usize = 5;

/// Stretches that wait without helpers: enough for a scan that has lost its core for a moment.
const STRETCHES_MAX: usize = 2;
/// With helpers: what the scan is at, what is left to it and what comes, and two for each helper.
const STRETCHES_HELPED_MAX: usize = 3;
const STRETCHES_EACH_MAX: usize = 2;
/// Runs of frames: what the scan is at, what comes, and one for each helper.
const RUNS_HELPED_MAX: usize = 2;

/// Buffers kept: what waits for two threads, what they are at, and what four stretches of 1 MiB become.
const KNOWN_MAX: usize = 32;
/// As many as two helpers need for stretches of which nothing gets known.
const UNKNOWN_MAX: usize = 32;

impl Feed {
    pub(super) fn new(shape: Shape) -> Arc<Self> {
        let (backlog, frames) = (Backlog::new(shape), None);
        let state = State { backlog, frames, crew: None, turn: None, helpers: 0, asked: 0 };
        let rooms = Rooms { unknown: Spent::new(UNKNOWN_MAX), known: Spent::new(KNOWN_MAX) };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_given_up: Arc::default(),
            rooms,
            buffers: frames::Buffers {
                compressed: Spent::new(HELPERS_MAX),
                decoded: Spent::new(HELPERS_MAX),
            },
        })
    }

    /// Helpers come from here, now and then.
    pub(super) fn employ(&self, crew: Crew) {
        if crew.len() >= CORES_MIN {
            self.state.lock().crew = Some(crew);
        }
    }

    /// The blob is zstd: its frames tell themselves where they end.
    pub(super) fn find_frames(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.frames.is_some() {
            return;
        }
        let mut frames = Frames::new(state.backlog.shape());
        state.backlog.pieces().for_each(|piece| frames.push(piece));
        if state.backlog.is_complete() {
            frames.close();
        }
        state.frames = Some(frames);
        drop(state);
        self.ask_for_help();
    }

    /// Nobody wants anything any more.
    pub(super) fn give_up(&self) {
        // With the lock, so that nobody misses it who is just about to wait.
        let mut state = self.state.lock();
        self.is_given_up.store(true, Ordering::Relaxed);
        state.turn = None;
        drop(state);
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// The next bytes, a whole piece but at the end. Waits while too much waits; `false` if nobody
    /// takes them any more.
    pub(super) fn push(
        self: &Arc<Self>,
        piece: Piece,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, BuildError> {
        let mut state = self.state.lock();
        while state.is_full() && !self.is_over() {
            self.wait_or_stop(&mut state, stop)?;
        }
        state.push(piece);
        drop(state);
        self.changed.notify_all();
        self.ask_for_help();
        Ok(!self.is_over())
    }

    /// The blob has ended: wait until it is scanned.
    pub(super) fn complete(self: &Arc<Self>, stop: &dyn Fn() -> bool) -> Result<(), BuildError> {
        self.state.lock().complete();
        self.changed.notify_all();
        self.ask_for_help();
        let mut state = self.state.lock();
        while !self.is_over() {
            self.wait_or_stop(&mut state, stop)?;
        }
        Ok(())
    }

    fn wait_or_stop(
        &self,
        state: &mut MutexGuard<'_, State>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), BuildError> {
        self.changed.wait_for(state, STOP_POLL);
        if stop() { Err(BuildError::Stopped) } else { Ok(()) }
    }

    /// The piece in which byte `at` stands, and where, once it has come; `None` at the end.
    pub(super) fn wait_for(
        self: &Arc<Self>,
        at: u64,
    ) -> Result<Option<(Piece, usize)>, BuildError> {
        let mut state = self.state.lock();
        loop {
            if self.is_over() {
                return Err(BuildError::Stopped);
            }
            if let Some(found) = state.backlog.piece_at(at) {
                state.take_turn();
                return Ok(Some(found));
            }
            if state.backlog.is_complete() {
                return Ok(None);
            }
            state.turn = None;
            self.changed.wait(&mut state);
        }
    }

    /// Forget a piece that ends before byte `at`, with the position of its end.
    pub(super) fn take_before(&self, at: u64) -> Option<(Piece, u64)> {
        let taken = self.state.lock().backlog.take_before(at);
        if taken.is_some() {
            self.changed.notify_all();
        }
        taken
    }

    /// The scan is at a block; what somebody has decoded from there on. Waits while he is at it.
    pub(super) fn arrive(
        self: &Arc<Self>,
        place: Place,
        is_behind_window: bool,
    ) -> Result<Option<Box<Decoded>>, BuildError> {
        self.take_over(|state| state.backlog.arrive(place, is_behind_window))
    }

    /// The same at a zstd frame.
    pub(super) fn arrive_at_frame(
        self: &Arc<Self>,
        at: u64,
    ) -> Result<Option<DecodedRun>, BuildError> {
        self.take_over(|state| {
            state.frames.as_mut().map_or(Arrival::Goes, |frames| frames.arrive(at))
        })
    }

    fn take_over<T>(
        self: &Arc<Self>,
        mut arrive: impl FnMut(&mut State) -> Arrival<T>,
    ) -> Result<Option<T>, BuildError> {
        let mut state = self.state.lock();
        loop {
            if self.is_over() {
                return Err(BuildError::Stopped);
            }
            let decoded = match arrive(&mut state) {
                Arrival::Waits => {
                    if state.turn.take().is_some() {
                        // Its core is somebody else's meanwhile.
                        drop(state);
                        self.ask_for_help();
                        state = self.state.lock();
                    } else {
                        self.changed.wait(&mut state);
                    }
                    continue;
                }
                Arrival::Goes => None,
                Arrival::Decoded(decoded) => Some(decoded),
            };
            state.take_turn();
            drop(state);
            if decoded.is_some() {
                // One held stretch or run less.
                self.ask_for_help();
            }
            return Ok(decoded);
        }
    }

    /// Its bytes have been taken over.
    pub(super) fn take_back(&self, run: DecodedRun) {
        self.buffers.decoded.give(run.bytes);
    }

    /// Ask for as many helpers as have something to do and a core to do it on.
    fn ask_for_help(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            if !state.has_work() || self.is_over() {
                return;
            }
            let Some((crew, turn)) = state.turn_of_helper() else { return };
            state.helpers += 1;
            state.asked += 1;
            drop(state);
            let feed = Arc::clone(self);
            let job = move |decoder: &mut Decoder| {
                feed.help(decoder);
                feed.state.lock().helpers -= 1;
                drop(turn);
                // Not at once: others wait for this thread.
                feed.ask_for_help();
            };
            if !crew.submit(job) {
                let mut state = self.state.lock();
                state.helpers -= 1;
                state.asked -= 1;
                return;
            }
        }
    }

    /// Decode one run of frames or one stretch, if one is left.
    fn help(self: &Arc<Self>, decoder: &mut Decoder) {
        self.state.lock().asked -= 1;
        match self.claim_run() {
            Some(task) => self.decode_run(task, decoder),
            None => self.claim().into_iter().for_each(|task| self.decode(&task)),
        }
    }

    /// Take the next run of frames, as a helper does.
    fn claim_run(&self) -> Option<RunTask> {
        let State { frames, backlog, .. } = &mut *self.state.lock();
        frames.as_mut()?.claim(backlog)
    }

    fn decode_run(&self, task: RunTask, decoder: &mut Decoder) {
        let mut told = RunTold { feed: self, start: task.start, decoded: None };
        told.decoded = task.decode(decoder, &self.buffers);
    }

    /// All that helpers would do with a blob of this kind if the scan never came.
    pub(super) fn decode_all(self: &Arc<Self>, compression: Compression) {
        match compression {
            Compression::Gzip => {
                while let Some(task) = self.claim() {
                    self.decode(&task);
                }
            }
            Compression::Zstd => {
                self.find_frames();
                let mut decoder = Decoder::new(inflate::Buffers::new(0));
                while let Some(task) = self.claim_run() {
                    self.decode_run(task, &mut decoder);
                }
            }
            Compression::Uncompressed => {}
        }
    }

    /// What a helper does.
    pub(super) fn decode(self: &Arc<Self>, task: &Task) {
        let mut told = Told { feed: self, stretch: task.stretch, is_done: false };
        let decoded = decode(task, &self.rooms, |found| match found {
            _ if self.is_over() => false,
            Some(place) => told.tell(Progress::Found(place)),
            None => self.state.lock().backlog.is_wanted(task.stretch),
        });
        if let Some(decoded) = decoded {
            told.is_done = told.tell(Progress::Done(Box::new(decoded)));
        }
    }

    /// All of a blob, without waiting for anybody.
    pub(super) fn fill(&self, pieces: impl Iterator<Item = Piece>) {
        let mut state = self.state.lock();
        pieces.for_each(|piece| state.push(piece));
        state.complete();
    }

    /// Take the next stretch, as a helper does.
    pub(super) fn claim(&self) -> Option<Task> {
        let mut state = self.state.lock();
        if state.frames.is_some() { None } else { state.backlog.claim() }
    }
}

/// Whoever waits for a helper is told in any case.
struct Told<'a> {
    feed: &'a Feed,
    stretch: usize,
    is_done: bool,
}

impl Told<'_> {
    fn tell(&self, progress: Progress) -> bool {
        let is_wanted = self.feed.state.lock().backlog.tell(self.stretch, progress);
        self.feed.changed.notify_all();
        is_wanted
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.tell(Progress::Nothing);
        }
    }
}

/// Whoever waits for a run of frames is told in any case.
struct RunTold<'a> {
    feed: &'a Feed,
    start: u64,
    decoded: Option<DecodedRun>,
}

impl Drop for RunTold<'_> {
    fn drop(&mut self) {
        if let Some(frames) = &mut self.feed.state.lock().frames {
            frames.tell(self.start, self.decoded.take());
        }
        self.feed.changed.notify_all();
    }
}

impl State {
    fn push(&mut self, piece: Piece) {
        if let Some(frames) = &mut self.frames {
            frames.push(&piece);
        }
        self.backlog.push(piece);
    }

    /// The blob has ended.
    fn complete(&mut self) {
        if let Some(frames) = &mut self.frames {
            frames.close();
        }
        self.backlog.complete();
    }

    fn is_full(&self) -> bool {
        let helpers = self.crew.as_ref().map_or(0, |crew| crew.len().min(HELPERS_MAX + 1) - 1);
        let max = match (helpers, &self.frames) {
            (0, _) => STRETCHES_MAX,
            (helpers, None) => STRETCHES_HELPED_MAX + helpers * STRETCHES_EACH_MAX,
            (helpers, Some(_)) => (RUNS_HELPED_MAX + helpers) * (RUN_STRETCHES_MAX + 1),
        };
        self.backlog.stretches() >= max
    }

    fn has_work(&self) -> bool {
        let free_count = match &self.frames {
            Some(frames) => frames.free_count(&self.backlog),
            None => self.backlog.free_count(),
        };
        self.helpers < HELPERS_MAX && free_count > self.asked
    }

    fn turn_of_helper(&self) -> Option<(Crew, Turn)> {
        let crew = self.crew.clone()?;
        let turn = crew.turn()?;
        Some((crew, turn))
    }

    /// The scan works.
    fn take_turn(&mut self) {
        if self.turn.is_none() {
            self.turn = self.crew.as_ref().map(Crew::turn_in_any_case);
        }
    }
}
