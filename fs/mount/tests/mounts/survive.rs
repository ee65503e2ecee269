//! Mounts that outlive their server: killed, restarted, and gone on with by a successor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::process::{Pid, Signal, kill_process};
use spanfs_mount::filesystem::Open;
use spanfs_mount::hold::{Holder, Holding, Name};
use spanfs_mount::overlay::OverlayOptions;
use spanfs_mount::transport::{Privilege, Transport};
use spanfs_mount::{Busy, Mounter, MounterOptions, Parts};

use crate::conformance::{PATIENCE, Road};
use crate::content::{Fate, noise};
use crate::layers::Maker;
use crate::scratch::{Scratch, is_soak, is_strict, may_mount};
use crate::shortcuts::read_cold;

const CHILD: &str = "SPANFS_TEST_CHILD";
/// A child whose layer comes to stand in a layer file, some of it.
const SHORTCUTS: &str = "shortcuts";
const READERS: u64 = 4;
const BIG: usize = 8 << 20;
/// Kills where somebody waits for the tests, and how long they come in CI and in the long version.
const KILLS: u32 = 6;
const KILL_EVERY: Duration = Duration::from_millis(400);
const CI: Duration = Duration::from_secs(120);
const SOAK: Duration = Duration::from_secs(600);
const LONG_KILL_EVERY: Duration = Duration::from_secs(5);

/// Every way to show a layer that has a session of ours in it.
const SERVED: [Road; 3] = [
    Road::OverFuse(Parts::Hidden, Transport::Dev),
    Road::OverFuse(Parts::Visible, Transport::Dev),
    Road::Inode(Privilege::Root, Transport::Dev),
];

fn maker() -> Maker {
    let mut maker = Maker::default();
    maker.directory("d", 0o755).file("d/big", 0o644, noise(BIG, 5)).file("small", 0o644, vec![7]);
    maker
}

/// The holder, as `tests/run` builds it.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("spanfs-hold");
    assert!(path.exists(), "{} is not built: cargo build -p spanfs-hold", path.display());
    path
}

fn holding(path: &Path) -> Holding {
    let hold = Holder::reach(path.join("hold.sock"), program()).unwrap();
    Holding { hold: Arc::new(hold), prefix: Name::new("spanfs.test").unwrap() }
}

/// A server in a process of its own.
struct Server(Child);

impl Server {
    /// Start it; it goes on with what is there, or mounts. Returns once it serves.
    fn start(road: usize, scratch: &Scratch) -> Self {
        Self::start_with(road, scratch, "")
    }

    fn start_with(road: usize, scratch: &Scratch, more: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "survive::child_that_serves", "--nocapture"])
            .env(CHILD, format!("{road} {more} {}", scratch.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.contains("child is ready"));
        assert!(ready, "the child serves nothing");
        Self(child)
    }

    fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let until = Instant::now() + PATIENCE;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the child does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Not a test: the body of a process that the tests here kill.
#[test]
fn child_that_serves() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let mut words = task.splitn(3, ' ');
    let road = SERVED[words.next().unwrap().parse::<usize>().unwrap()];
    let (more, path) = (words.next().unwrap(), PathBuf::from(words.next().unwrap()));
    let mut options = MounterOptions::new(path.join("state"));
    options.open = Open::Direct;
    options.holding = Some(holding(&path));
    road.set(&mut options);
    let mounter = Mounter::new(options).unwrap();
    let maker = maker();
    let fate = if more == "hold" { Fate::Hold } else { Fate::Late };
    let (layer, content) = match more {
        SHORTCUTS => maker.standing(&path.join("layer"), fate),
        _ => maker.layer(&path.join("layer"), Some(fate)),
    };
    let at = path.join("at");
    let inherited = mounter.inherit(Privilege::Root).unwrap();
    let old = inherited.at(&at).pop();
    inherited.discard();
    let mount = match (road, old) {
        (Road::Inode(..), Some(old)) => {
            let layers = vec![(layer.name, layer.content)];
            mounter.adopt_inodes(old, Arc::new(maker.tree()), layers).unwrap()
        }
        (Road::Inode(privilege, _), None) => {
            let layers = vec![(layer.name, layer.content)];
            mounter.inodes(Arc::new(maker.tree()), layers, &at, privilege).unwrap()
        }
        (_, Some(old)) => mounter.adopt(old, &[layer]).unwrap(),
        (_, None) => mounter.image(&[layer], &at, &OverlayOptions::default()).unwrap(),
    };
    writeln!(std::io::stdout(), "child is ready").unwrap();
    if more == "hold" {
        content.wait_for_fill();
    }
    // Told by a file, as a test process leaves signals to its harness.
    let stop = path.join("stop");
    while !stop.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::remove_file(stop).unwrap();
    if path.join("unmount").exists() {
        mount.unmount(PATIENCE, Busy::Leave).unwrap();
    } else {
        mounter.leave();
        drop(mount);
    }
    std::process::exit(0);
}

/// Readers that compare every byte, past every cache of theirs.
struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    /// Longest that one read took, in µs.
    longest: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Result<(), String>>>,
}

impl Readers {
    fn start(path: &Path) -> Self {
        let (stop, reads, longest) = (Arc::default(), Arc::default(), Arc::default());
        let expected = Arc::new(noise(BIG, 5));
        let threads = (0..READERS).map(|reader| {
            let (stop, reads, longest): (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>) =
                (Arc::clone(&stop), Arc::clone(&reads), Arc::clone(&longest));
            let (expected, path) = (Arc::clone(&expected), path.to_owned());
            std::thread::spawn(move || {
                let mut state = reader + 1;
                let mut buffer = vec![0; 64 << 10];
                while !stop.load(Ordering::Relaxed) {
                    let file =
                        std::fs::File::open(&path).map_err(|error| format!("open: {error}"))?;
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
                    let offset = (state >> 20) as usize % (BIG - buffer.len());
                    let start = Instant::now();
                    file.read_exact_at(&mut buffer, offset as u64)
                        .map_err(|error| format!("read at {offset}: {error}"))?;
                    longest.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
                    if buffer != expected[offset..offset + buffer.len()] {
                        return Err(format!("wrong bytes at {offset}"));
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                }
                Ok(())
            })
        });
        let threads = threads.collect();
        Self { stop, reads, longest, threads }
    }

    /// Wait until each of them may have read on.
    fn wait_for_progress(&self) {
        let (before, until) = (self.reads.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.reads.load(Ordering::Relaxed) < before + 4 * READERS {
            assert!(!self.threads.iter().any(|it| it.is_finished()), "a reader ended");
            assert!(Instant::now() < until, "readers hang");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let until = Instant::now() + PATIENCE;
        while !self.threads.iter().all(|it| it.is_finished()) {
            assert!(Instant::now() < until, "a reader hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
        let results = self.threads.into_iter().map(|it| it.join().unwrap());
        results.filter_map(Result::err).collect()
    }
}

/// End the server in good order: it takes its mounts along, or leaves them.
fn stop(server: Server, scratch: &Scratch, unmount: bool) {
    if unmount {
        std::fs::write(scratch.path().join("unmount"), "").unwrap();
    }
    std::fs::write(scratch.path().join("stop"), "").unwrap();
    let mut child = server;
    let until = Instant::now() + PATIENCE;
    while child.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the child does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing is left: no mount, no record, and no holder, as it has nothing to hold.
fn assert_gone(scratch: &Scratch) {
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
    let records = scratch.path().join("state/records");
    assert_eq!(std::fs::read_dir(records).unwrap().count(), 0);
    let until = Instant::now() + PATIENCE;
    while scratch.path().join("hold.sock").exists() {
        assert!(Instant::now() < until, "the holder goes on for nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_again_and_again_readers_see_a_pause() {
    if !may_mount("survival") {
        return;
    }
    let long =
        |time: Duration| (LONG_KILL_EVERY, (time.as_secs() / LONG_KILL_EVERY.as_secs()) as u32);
    let (every, kills) = match (is_soak(), is_strict()) {
        (true, _) => long(SOAK),
        (false, true) => long(CI),
        (false, false) => (KILL_EVERY, KILLS),
    };
    // Side by side, so that the long version takes no longer than one of them.
    std::thread::scope(|scope| {
        for number in 0..SERVED.len() {
            scope.spawn(move || killed_again_and_again(number, "", every, kills));
        }
        scope.spawn(move || killed_again_and_again(0, SHORTCUTS, every, kills));
    });
}

fn killed_again_and_again(number: usize, more: &str, every: Duration, kills: u32) {
    let scratch = Scratch::new();
    let at = scratch.directory("at");
    let mut server = Server::start_with(number, &scratch, more);
    let readers = Readers::start(&at.join("d/big"));
    for _ in 0..kills {
        std::thread::sleep(every);
        readers.wait_for_progress();
        server.end(Signal::KILL);
        server = Server::start_with(number, &scratch, more);
    }
    readers.wait_for_progress();
    let longest = Duration::from_micros(readers.longest.load(Ordering::Relaxed));
    let reads = readers.reads.load(Ordering::Relaxed);
    let road = SERVED[number];
    eprintln!("{road:?} {more}: longest of {reads} reads {longest:?} over {kills} kills");
    assert_eq!(readers.finish(), Vec::<String>::new(), "{road:?} {more}");
    stop(server, &scratch, true);
    assert_gone(&scratch);
}

#[test]
fn restarted_in_good_order_readers_see_a_pause() {
    if !may_mount("planned_restart") {
        return;
    }
    for (number, _) in SERVED.iter().enumerate() {
        let scratch = Scratch::new();
        let at = scratch.directory("at");
        let mut server = Server::start(number, &scratch);
        let mounts = scratch.mounts();
        let readers = Readers::start(&at.join("d/big"));
        for _ in 0..KILLS {
            readers.wait_for_progress();
            stop(server, &scratch, false);
            assert_eq!(scratch.mounts(), mounts, "nothing above is touched");
            server = Server::start(number, &scratch);
        }
        readers.wait_for_progress();
        assert_eq!(readers.finish(), Vec::<String>::new(), "{:?}", SERVED[number]);
        stop(server, &scratch, true);
        assert_gone(&scratch);
    }
}

/// The process that the holder is.
fn holder_of(scratch: &Scratch) -> Pid {
    let socket = scratch.path().join("hold.sock");
    let until = Instant::now() + PATIENCE;
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_holder =
                command.split(|&byte| byte == 0).nth(1) == Some(socket.as_os_str().as_bytes());
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (true, Some(pid)) = (is_holder, pid.and_then(Pid::from_raw)) {
                return pid;
            }
        }
        assert!(Instant::now() < until, "no holder listens at {}", socket.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_holder_costs_nothing_and_is_replaced() {
    if !may_mount("killed_holder") {
        return;
    }
    for (number, _) in SERVED.iter().enumerate() {
        let scratch = Scratch::new();
        let at = scratch.directory("at");
        let mut server = Server::start(number, &scratch);
        let readers = Readers::start(&at.join("d/big"));
        readers.wait_for_progress();
        // What it has inherited a server must be able to give to another holder, too.
        server.end(Signal::KILL);
        server = Server::start(number, &scratch);
        readers.wait_for_progress();
        let first = holder_of(&scratch);
        kill_process(first, Signal::KILL).unwrap();
        readers.wait_for_progress();
        let until = Instant::now() + PATIENCE;
        while holder_of(&scratch) == first {
            assert!(Instant::now() < until, "it is not replaced");
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may still be getting what its predecessor had.
        std::thread::sleep(Duration::from_millis(200));
        server.end(Signal::KILL);
        server = Server::start(number, &scratch);
        readers.wait_for_progress();
        assert_eq!(readers.finish(), Vec::<String>::new(), "{:?}", SERVED[number]);
        stop(server, &scratch, true);
        assert_gone(&scratch);
    }
}

#[test]
fn both_killed_readers_get_errors_and_the_next_start_cleans() {
    if !may_mount("both_killed") {
        return;
    }
    for (number, _) in SERVED.iter().enumerate() {
        let scratch = Scratch::new();
        let at = scratch.directory("at");
        let server = Server::start(number, &scratch);
        let readers = Readers::start(&at.join("d/big"));
        readers.wait_for_progress();
        let holder = holder_of(&scratch);
        server.end(Signal::KILL);
        kill_process(holder, Signal::KILL).unwrap();
        let until = Instant::now() + PATIENCE;
        while !readers.threads.iter().all(|it| it.is_finished()) {
            assert!(Instant::now() < until, "a reader of a dead mount hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
        let errors = readers.finish();
        assert_eq!(errors.len() as u64, READERS);
        let words = ["Transport endpoint", "I/O error", "os error 103", "Input/output"];
        let is_clear = |error: &String| words.iter().any(|word| error.contains(word));
        assert!(errors.iter().all(is_clear), "{errors:?}");
        let server = Server::start(number, &scratch);
        let readers = Readers::start(&at.join("d/big"));
        readers.wait_for_progress();
        assert_eq!(readers.finish(), Vec::<String>::new());
        stop(server, &scratch, true);
        assert_gone(&scratch);
    }
}

/// Chunks of the large file that come to stand as a whole, and one that doesn't.
const STANDING: [usize; 3] = [0, 3, 6];
const NEVER_STANDING: usize = 1;

fn read_chunk(at: &Path, chunk: usize) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let bytes = read_cold(&at.join("d/big"), chunk * CHUNK, CHUNK)?;
    assert!(bytes == noise(BIG, 5)[chunk * CHUNK..][..CHUNK], "chunk {chunk}");
    Ok(())
}

fn kill_both(server: Server, scratch: &Scratch) {
    let holder = holder_of(scratch);
    server.end(Signal::KILL);
    kill_process(holder, Signal::KILL).unwrap();
    // Its descriptors go with it, a moment later.
    let until = Instant::now() + PATIENCE;
    while read_chunk(&scratch.path().join("at"), NEVER_STANDING).is_ok() {
        assert!(Instant::now() < until, "somebody serves still");
    }
}

#[test]
fn both_killed_what_stands_is_read_on() {
    if !may_mount("both_killed_shortcuts") {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.directory("at");
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    read_chunk(&at, STANDING[0]).unwrap();
    read_chunk(&at, NEVER_STANDING).unwrap();
    // The successor leads on where its predecessor began.
    server.end(Signal::KILL);
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    read_chunk(&at, STANDING[1]).unwrap();
    kill_both(server, &scratch);
    read_chunk(&at, STANDING[0]).unwrap();
    read_chunk(&at, STANDING[1]).unwrap();
    read_chunk(&at, STANDING[2]).unwrap_err();
    read_chunk(&at, NEVER_STANDING).unwrap_err();
    // Whoever has it open reads on, also when it is mounted anew.
    let open = std::fs::File::open(at.join("d/big")).unwrap();
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    rustix::fs::fadvise(&open, 0, None, Advice::DontNeed).unwrap();
    let mut bytes = [0; 4096];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(BIG, 5)[..4096]);
    read_chunk(&at, STANDING[2]).unwrap();
    drop(open);
    stop(server, &scratch, true);
    assert_gone(&scratch);
}

#[test]
fn a_layer_in_another_file_is_not_led_to() {
    if !may_mount("other_layer_file") {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.directory("at");
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    read_chunk(&at, STANDING[0]).unwrap();
    server.end(Signal::KILL);
    std::fs::remove_file(scratch.path().join("layer/standing")).unwrap();
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    // The mount knows the old file, where what comes now never stands.
    STANDING.iter().for_each(|&chunk| read_chunk(&at, chunk).unwrap());
    STANDING.iter().for_each(|&chunk| read_chunk(&at, chunk).unwrap());
    kill_both(server, &scratch);
    read_chunk(&at, STANDING[0]).unwrap();
    read_chunk(&at, STANDING[1]).unwrap_err();
    let server = Server::start_with(0, &scratch, SHORTCUTS);
    stop(server, &scratch, true);
    assert_gone(&scratch);
}

#[test]
fn a_record_of_a_newer_version_is_refused_and_its_readers_freed() {
    if !may_mount("newer_record") {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.directory("at");
    let server = Server::start_with(0, &scratch, "hold");
    let path = at.join("d/big");
    let reader = std::thread::spawn(move || std::fs::read(path).map(drop).unwrap_err());
    std::thread::sleep(Duration::from_millis(200));
    server.end(Signal::KILL);
    assert!(!reader.is_finished(), "its read waits for a successor");
    let records = scratch.path().join("state/records");
    let record = std::fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("format 2", "format 9")).unwrap();
    // The one of this version mounts anew, above what it does not understand.
    let server = Server::start(0, &scratch);
    assert!(reader.join().unwrap().raw_os_error().is_some());
    assert!(record.exists(), "what can't be read is left");
    assert_eq!(std::fs::read(at.join("small")).unwrap(), [7]);
    stop(server, &scratch, true);
}
