//! The shell around the plan: layers tell what happens, the plan says what to ask for.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spanfs_layer::{Digest, UncompressedOffset};

use crate::layer::{Layer, Wanted};
use crate::works::Works;

use super::plan::{Place, Plan};
use super::trace::RUNS_MAX;
use super::{Background, Trace};

/// How long first reads are recorded: a start is over by then, or is no start any more.
const RECORD_TIME: Duration = Duration::from_secs(60);

/// Which image, and how to prefetch for it.
#[derive(Clone)]
pub struct ImageSpec {
    /// Layers from the bottom up.
    pub layers: Vec<Arc<Layer>>,
    /// Digest of the image config, by which traces are kept; without it none is recorded or replayed.
    pub config: Option<Digest>,
    /// What nobody asked for.
    pub background: Background,
    /// Whether to record the first reads.
    pub record: bool,
}

/// State of an image's prefetching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageStatus {
    /// Runs of the trace that was replayed; 0 if there was none.
    pub trace_runs: usize,
    /// Spans read for the first time since the image was opened.
    pub touched_spans: usize,
    /// Nothing is left to fetch.
    pub done: bool,
}

/// The layers of one image, prefetched together while this lives.
pub struct Image {
    layers: Vec<Arc<Layer>>,
    works: Arc<Works>,
    trace_path: Option<PathBuf>,
    trace_runs: usize,
    state: Mutex<State>,
    /// Calls of `pump` since nobody was in it.
    pumps: AtomicUsize,
}

struct State {
    plan: Plan,
    touched: HashSet<Place>,
    recording: Option<Recording>,
}

struct Recording {
    trace: Trace,
    until: Instant,
}

impl Image {
    pub(crate) fn new(
        works: Arc<Works>,
        spec: ImageSpec,
        trace_path: Option<PathBuf>,
    ) -> Arc<Self> {
        let ImageSpec { layers, background, record, .. } = spec;
        let digests: Vec<_> = layers.iter().map(|layer| *layer.digest()).collect();
        let trace = trace_path.as_ref().and_then(|path| match Trace::read(path) {
            Ok(trace) => trace.filter(|trace| trace.layers == digests),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "trace is not replayed");
                None
            }
        });
        let places = trace.as_ref().map(|trace| places(&layers, &trace.runs)).unwrap_or_default();
        let sizes = layers.iter().map(|layer| layer.compressed_lens()).collect();
        let trace_runs = trace.map_or(0, |trace| trace.runs.len());
        let recording = (record && trace_path.is_some()).then(|| Recording {
            trace: Trace { layers: digests, runs: Vec::new() },
            until: Instant::now() + RECORD_TIME,
        });
        let plan = Plan::new(sizes, background, places);
        let state = Mutex::new(State { plan, touched: HashSet::new(), recording });
        let pumps = AtomicUsize::new(0);
        let image = Arc::new(Self { layers, works, trace_path, trace_runs, state, pumps });
        let is_recording = image.state.lock().recording.is_some();
        for (number, layer) in image.layers.iter().enumerate() {
            layer.observe(Arc::downgrade(&image), number);
            if is_recording {
                layer.recording_begins();
            }
        }
        image.pump();
        image
    }

    /// Layers from the bottom up.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// Ask for ranges that are probably read soon, in this order: the start set.
    pub fn expect(&self, ranges: &[(usize, Range<UncompressedOffset>)]) {
        let places = places(&self.layers, ranges);
        self.state.lock().plan.expect(places);
        self.pump();
    }

    /// First reads so far, as far as they are recorded.
    pub fn trace(&self) -> Option<Trace> {
        self.state.lock().recording.as_ref().map(|recording| recording.trace.clone())
    }

    /// State at this moment.
    pub fn status(&self) -> ImageStatus {
        let state = self.state.lock();
        ImageStatus {
            trace_runs: self.trace_runs,
            touched_spans: state.touched.len(),
            done: state.plan.is_done(),
        }
    }

    /// A span of a layer was read; `missed` if it had to be asked for.
    pub(crate) fn handle_touch(&self, place: Place, missed: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if !state.touched.insert(place) {
            return;
        }
        state.plan.handle_touch(place, missed, now);
        if let Some(recording) = &mut state.recording
            && now < recording.until
            && recording.trace.runs.len() < RUNS_MAX
            && let Some(run) = self.run(place)
        {
            recording.trace.runs.push((place.0, run));
        }
        drop(state);
        self.pump();
    }

    /// A span of a layer came to its end.
    pub(crate) fn handle_settled(&self, place: Place, arrived: bool) {
        self.state.lock().plan.handle_settled(place, arrived, Instant::now());
        self.pump();
    }

    /// Time has passed.
    pub(crate) fn handle_tick(&self) {
        let now = Instant::now();
        let over = {
            let mut state = self.state.lock();
            state.plan.pause_background(self.works.is_over_quota());
            let over = state.recording.as_ref().is_some_and(|recording| now >= recording.until);
            over.then(|| state.recording.take()).flatten()
        };
        if let Some(recording) = over {
            self.end(&recording);
        }
        self.pump();
    }

    fn run(&self, (layer, span): Place) -> Option<Range<UncompressedOffset>> {
        let span = self.layers.get(layer)?.table().spans().get(span)?;
        Some(span.uncompressed.clone())
    }

    /// Ask for what the plan says. One thread at a time does, so that the order is the plan's; who
    /// comes meanwhile has it go round once more.
    fn pump(&self) {
        if self.pumps.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let mut seen = 1;
        loop {
            self.ask_all();
            match self.pumps.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    fn ask_all(&self) {
        let absent = |(layer, span): Place| {
            self.layers.get(layer).is_some_and(|layer| layer.is_absent(span))
        };
        loop {
            let (now, waiting) = (Instant::now(), self.works.demand());
            let ask = {
                let mut bandwidth = self.works.bandwidth.lock();
                self.state.lock().plan.poll_ask(now, waiting, &mut bandwidth, &absent)
            };
            let Some(ask) = ask else { return };
            let Some(layer) = self.layers.get(ask.place.0) else { return };
            if layer.want(ask.place.1, ask.priority, None) == Wanted::There {
                // It came between the look and the wish: nobody will tell us.
                self.state.lock().plan.handle_settled(ask.place, true, now);
            }
        }
    }

    fn end(&self, recording: &Recording) {
        self.save(&recording.trace);
        self.layers.iter().for_each(|layer| layer.recording_ended());
    }

    fn save(&self, trace: &Trace) {
        let Some(path) = self.trace_path.as_ref().filter(|_| !trace.runs.is_empty()) else {
            return;
        };
        let old = Trace::read(path).ok().flatten();
        let merged = match old {
            Some(old) => old.merged(trace),
            None => trace.clone(),
        };
        if let Err(error) = merged.write(path) {
            tracing::warn!(path = %path.display(), %error, "trace is not kept");
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(recording) = self.state.get_mut().recording.take() {
            self.end(&recording);
        }
    }
}

/// Spans of the ranges, each once, in order.
fn places(layers: &[Arc<Layer>], ranges: &[(usize, Range<UncompressedOffset>)]) -> Vec<Place> {
    let mut seen = HashSet::new();
    let spans = ranges.iter().flat_map(|(number, range)| {
        let spans = layers.get(*number).map(|layer| layer.table().covering(range.clone()));
        spans.unwrap_or_default().map(|span| (*number, span))
    });
    spans.filter(|place| seen.insert(*place)).collect()
}

/// Who wants to know what happens to a layer's spans.
pub(crate) type Observer = (Weak<Image>, usize);
