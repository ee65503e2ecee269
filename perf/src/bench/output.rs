//! What a workload prints, line by line with the time; the end of it is kept for errors.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use regex::Regex;

const LINES_KEPT: usize = 40;
/// A line without an end counts as one when it is this long.
const LINE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<String>,
    matched: Option<Instant>,
}

/// The output of a child, read as it comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output(Arc<Mutex<State>>);

impl Output {
    /// Reads both streams of `child` from now on. `wanted` is the line to look for.
    pub(crate) fn of(child: &mut Child, wanted: Option<&str>) -> Result<Self> {
        let output = Self::default();
        let wanted = wanted.map(Regex::new).transpose()?;
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|it| Box::new(it) as _),
            child.stderr.take().map(|it| Box::new(it) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let (output, wanted) = (output.clone(), wanted.clone());
            std::thread::Builder::new()
                .name("output".to_owned())
                .spawn(move || output.read(stream, wanted.as_ref()))
                .context("a thread for a workload's output")?;
        }
        Ok(output)
    }

    fn read(&self, stream: impl Read, wanted: Option<&Regex>) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match stream.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                // The stream ends with its process; what broke it is told by that one's status.
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let mut state = self.lock();
            if state.matched.is_none() && wanted.is_some_and(|wanted| wanted.is_match(&line)) {
                state.matched = Some(Instant::now());
            }
            if state.lines.len() == LINES_KEPT {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the wanted line came.
    pub(crate) fn matched(&self) -> Option<Instant> {
        self.lock().matched
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let state = self.lock();
        let lines: Vec<_> = state.lines.iter().map(String::as_str).collect();
        match lines.as_slice() {
            [] => "it printed nothing".to_owned(),
            lines => format!("the end of its output:\n{}", lines.join("\n")),
        }
    }
}
