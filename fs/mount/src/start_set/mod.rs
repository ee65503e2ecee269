//! The start set: which bytes a container's start will need, guessed from its config and its tree.
//!
//! A machine without I/O. It names ranges to prefetch in the order in which they will be needed
//! ([`StartSet::poll_wanted`]), asks for the few bytes that it must see itself
//! ([`StartSet::poll_need`]), and goes on when they come ([`StartSet::handle_bytes`]). A file is
//! wanted as soon as it is known by name, so the transfer of what was found never waits for what is
//! still to be found. [`drive()`] runs it over contents.
//!
//! What it follows: the lists of users and groups, which whoever makes the container reads, entrypoint
//! and command through `PATH` and symlinks, words of `sh -c`, script interpreters, the ELF interpreter
//! and the closure of needed libraries, the files at the heart of a language runtime. What a program
//! opens by itself it can't know; a recorded trace does.

mod drive;
mod elf;
mod exam;
mod ld_cache;
mod paths;
mod pieces;
mod runtimes;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use spanfs_layer::tree::{NodeId, NodeKind};
use spanfs_layer::{Tree, UncompressedOffset};

pub use drive::drive;

use self::exam::{Exam, Outcome};
use self::ld_cache::LdCache;
use self::paths::Found;

/// What an image's config says about its start; all are bytes.
#[derive(Clone, Debug, Default)]
pub struct StartConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<Vec<u8>>,
    /// `Cmd`, or what the user asked for instead.
    pub cmd: Vec<Vec<u8>>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// `WorkingDir`.
    pub workdir: Vec<u8>,
}

/// Limits of a start set.
#[derive(Clone, Copy, Debug)]
pub struct StartSetOptions {
    /// Files in it.
    pub files_max: usize,
    /// Bytes in it: a file that does not fit any more is left out.
    pub bytes_max: u64,
    /// Bytes that the machine itself asks for.
    pub needs_bytes_max: u64,
}

impl Default for StartSetOptions {
    fn default() -> Self {
        Self {
            // Python's whole standard library has some 1,500 files.
            files_max: 4096,
            // Node and a JVM with its modules fit; beyond, on-demand reads know better.
            bytes_max: 256 << 20,
            // Headers of some hundred libraries, and one `ld.so.cache`.
            needs_bytes_max: 16 << 20,
        }
    }
}

/// Bytes that the start will need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Layer, 0 is the lowest.
    pub layer: u16,
    /// Range of its layer file.
    pub range: Range<UncompressedOffset>,
}

/// Bytes that the machine must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Which question this belongs to.
    id: u64,
    /// Layer, 0 is the lowest.
    pub layer: u16,
    /// Range of its layer file, at most 1 MiB.
    pub range: Range<UncompressedOffset>,
}

/// See the module.
pub struct StartSet {
    tree: Arc<Tree>,
    config: StartConfig,
    options: StartSetOptions,
    wanted: VecDeque<Wanted>,
    wanted_bytes: u64,
    needs_bytes: u64,
    seen: HashSet<NodeId>,
    examined: HashSet<NodeId>,
    queue: VecDeque<Exam>,
    exams: Vec<Exam>,
    next_id: u64,
    libraries: Libraries,
}

/// What a container engine reads before it starts anything: which user that is, in which groups.
const READ_TO_MAKE: [&[u8]; 2] = [b"/etc/passwd", b"/etc/group"];
/// Files looked at at the same time: each waits for one range.
const EXAMS_MAX: usize = 16;
/// Libraries that wait for `ld.so.cache`.
const WAITING_MAX: usize = 4096;

enum Libraries {
    /// Names, with the directories to search first, for when the cache is known.
    Waiting(Vec<(Vec<u8>, Vec<Vec<u8>>)>),
    Known(LdCache),
}

impl StartSet {
    /// The machine for an image, `tree` merged from its layers.
    pub fn new(tree: Arc<Tree>, config: StartConfig, options: StartSetOptions) -> Self {
        let mut set = Self {
            tree,
            config,
            options,
            wanted: VecDeque::new(),
            wanted_bytes: 0,
            needs_bytes: 0,
            seen: HashSet::new(),
            examined: HashSet::new(),
            queue: VecDeque::new(),
            exams: Vec::new(),
            next_id: 0,
            libraries: Libraries::Waiting(Vec::new()),
        };
        for path in READ_TO_MAKE {
            if let Some(found) = paths::find(&set.tree, b"/", path) {
                set.want(&found);
            }
        }
        set.run_command();
        let cache = paths::find(&set.tree, b"/", b"/etc/ld.so.cache")
            .filter(|found| set.want(found))
            .is_some_and(|found| set.examine(found, exam::What::LdCache));
        if !cache {
            set.libraries = Libraries::Known(LdCache::default());
        }
        set
    }

    /// The next range to prefetch.
    pub fn poll_wanted(&mut self) -> Option<Wanted> {
        self.wanted.pop_front()
    }

    /// The next range that the machine must see before it can go on; each is told once.
    pub fn poll_need(&mut self) -> Option<Need> {
        loop {
            while self.exams.len() < EXAMS_MAX
                && let Some(exam) = self.queue.pop_front()
            {
                self.exams.push(exam);
            }
            let need = self.exams.iter_mut().find_map(Exam::poll_need)?;
            let len = need.range.end.0.saturating_sub(need.range.start.0);
            let total = self.needs_bytes.saturating_add(len);
            if total <= self.options.needs_bytes_max {
                self.needs_bytes = total;
                return Some(need);
            }
            self.handle_failed(&need);
        }
    }

    /// True once nothing is wanted, needed or awaited any more.
    pub fn is_done(&self) -> bool {
        self.wanted.is_empty() && self.queue.is_empty() && self.exams.is_empty()
    }

    /// The bytes of a need, all of its range.
    pub fn handle_bytes(&mut self, need: &Need, bytes: Vec<u8>) {
        let Some(index) = self.exams.iter().position(|exam| exam.id == need.id) else { return };
        let Some(exam) = self.exams.get_mut(index) else { return };
        let outcome = exam.handle_bytes(bytes);
        if !matches!(outcome, Outcome::More) {
            let exam = self.exams.swap_remove(index);
            self.conclude(&exam, outcome);
        }
    }

    /// The bytes of a need can't be had: that file is followed no further.
    pub fn handle_failed(&mut self, need: &Need) {
        if let Some(index) = self.exams.iter().position(|exam| exam.id == need.id) {
            let exam = self.exams.swap_remove(index);
            self.conclude(&exam, Outcome::Nothing);
        }
    }

    fn conclude(&mut self, exam: &Exam, outcome: Outcome) {
        match outcome {
            Outcome::Script(line) => self.run_interpreter(&line),
            Outcome::Elf(linkage) => self.link(&exam.path, linkage),
            Outcome::LdCache(cache) => self.cache_known(cache),
            Outcome::Nothing if exam.what == exam::What::LdCache => {
                self.cache_known(LdCache::default());
            }
            Outcome::Nothing | Outcome::More => {}
        }
    }

    /// Entrypoint and command: both run where the entrypoint is a script that ends in `exec "$@"`.
    fn run_command(&mut self) {
        let StartConfig { entrypoint, cmd, .. } = self.config.clone();
        for program in [entrypoint.first(), cmd.first()].into_iter().flatten() {
            self.run(program);
        }
        let words: Vec<Vec<u8>> = entrypoint.into_iter().chain(cmd).collect();
        for word in words.iter().skip(1) {
            self.want_argument(word);
        }
        for script in words.windows(2).filter(|pair| pair.first().is_some_and(|w| w == b"-c")) {
            for word in script.last().map(|text| paths::shell_words(text)).unwrap_or_default() {
                self.run(word);
                self.want_argument(word);
            }
        }
    }

    /// A program as the shell finds it.
    fn run(&mut self, program: &[u8]) {
        let Some(found) = paths::program(&self.tree, &self.config, program) else { return };
        self.run_found(found);
    }

    fn run_found(&mut self, found: Found) {
        if self.want(&found) {
            for path in runtimes::files(&self.tree, &found) {
                self.want(&path);
            }
            self.examine(found, exam::What::Program);
        }
    }

    /// A file that is named on the command line will be opened.
    fn want_argument(&mut self, word: &[u8]) {
        if word.is_empty() || word.starts_with(b"-") {
            return;
        }
        if let Some(found) = paths::find(&self.tree, &self.config.workdir, word) {
            self.want(&found);
        }
    }

    /// `line` is what follows `#!`.
    fn run_interpreter(&mut self, line: &[u8]) {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(interpreter) = words.next() else { return };
        self.run(interpreter);
        if interpreter.ends_with(b"/env") {
            let is_program = |word: &&[u8]| !word.starts_with(b"-") && !word.contains(&b'=');
            if let Some(program) = words.find(is_program) {
                self.run(program);
            }
        }
    }

    fn link(&mut self, path: &[u8], linkage: elf::Linkage) {
        if let Some(interpreter) = &linkage.interpreter
            && let Some(found) = paths::find(&self.tree, b"/", interpreter)
        {
            self.load(found);
        }
        let directories = linkage.directories(path, &self.config.env);
        for name in linkage.needed {
            match &mut self.libraries {
                Libraries::Waiting(waiting) if waiting.len() < WAITING_MAX => {
                    waiting.push((name, directories.clone()));
                }
                Libraries::Waiting(_) => {}
                Libraries::Known(_) => self.need_library(&name, &directories),
            }
        }
    }

    fn cache_known(&mut self, cache: LdCache) {
        let known = Libraries::Known(cache);
        if let Libraries::Waiting(waiting) = std::mem::replace(&mut self.libraries, known) {
            for (name, directories) in waiting {
                self.need_library(&name, &directories);
            }
        }
    }

    fn need_library(&mut self, name: &[u8], directories: &[Vec<u8>]) {
        let Libraries::Known(cache) = &self.libraries else { return };
        if let Some(found) = paths::library(&self.tree, name, directories, cache) {
            self.load(found);
        }
    }

    fn load(&mut self, found: Found) {
        if self.want(&found) {
            self.examine(found, exam::What::Program);
        }
    }

    /// Adds a file to the set; true if it is a regular file and fits.
    fn want(&mut self, found: &Found) -> bool {
        let Some(node) = self.tree.node(found.node) else { return false };
        if node.kind() != NodeKind::Regular || self.seen.contains(&found.node) {
            return node.kind() == NodeKind::Regular;
        }
        let bytes = node.extents().fold(0u64, |sum, extent| sum.saturating_add(extent.len));
        let total = self.wanted_bytes.saturating_add(bytes);
        if self.seen.len() >= self.options.files_max || total > self.options.bytes_max {
            return false;
        }
        self.wanted_bytes = total;
        self.seen.insert(found.node);
        for extent in node.extents().filter(|extent| extent.len > 0) {
            let end = UncompressedOffset(extent.data.0.saturating_add(extent.len));
            self.wanted.push_back(Wanted { layer: node.layer(), range: extent.data..end });
        }
        true
    }

    /// Looks into a file, once; false if there is nothing to look into.
    fn examine(&mut self, found: Found, what: exam::What) -> bool {
        let Some(node) = self.tree.node(found.node) else { return false };
        if !self.examined.insert(found.node) {
            return false;
        }
        let Some(exam) = Exam::new(self.next_id, node, found.path, what) else { return false };
        self.next_id += 1;
        self.queue.push_back(exam);
        true
    }
}

#[cfg(test)]
mod tests;
