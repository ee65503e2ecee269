//! The finished layer file against the diffID, in idle time: what proves every byte that is shown.

mod plain;
mod uring;

use std::fs::File;
use std::io;
use std::sync::Weak;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, unbounded};
use spanfs_layer::{Algorithm, Hasher};

use crate::layer::Layer;

/// Bytes read at once.
const PIECE_LEN: usize = 1 << 20;

/// Below everything that somebody waits for.
const NICE: i32 = 10;

/// One thread that checks finished layers, one after another.
pub(crate) struct Verifier {
    queue: Option<Sender<Weak<Layer>>>,
    thread: Option<JoinHandle<()>>,
}

impl Verifier {
    /// Start the thread.
    pub(crate) fn new() -> io::Result<Self> {
        // Bounded by the layers open: each is queued once at a time.
        let (queue, jobs) = unbounded();
        let thread = std::thread::Builder::new().name("verify".into()).spawn(move || run(&jobs))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queue a finished layer; its `verify` runs on our thread.
    pub(crate) fn submit(&self, layer: Weak<Layer>) {
        if let Some(queue) = &self.queue {
            // The thread ends only after the queue.
            drop(queue.send(layer));
        }
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.queue = None;
        let Some(thread) = self.thread.take() else { return };
        // The last owner may be a layer that was just checked: the thread can't wait for itself.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the verifying thread panicked");
        }
    }
}

fn run(jobs: &Receiver<Weak<Layer>>) {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "verification runs at ordinary priority");
    }
    let reader = Reader::new();
    for layer in jobs {
        if let Some(layer) = layer.upgrade() {
            layer.verify(&reader);
        }
    }
}

/// How whole files are read.
pub(crate) enum Reader {
    /// Through io_uring: one piece is read while the one before is hashed.
    Uring(uring::Runtime),
    /// By pread(2).
    Plain,
}

impl Reader {
    /// io_uring where the kernel lets us.
    pub(crate) fn new() -> Self {
        match uring::start() {
            Ok(runtime) => Self::Uring(runtime),
            Err(error) => {
                tracing::info!(%error, "no io_uring: finished layers are read by pread");
                Self::Plain
            }
        }
    }

    /// Hash the first `len` bytes of `file`.
    ///
    /// `pause` is called between pieces; it may wait, and says whether to go on.
    pub(crate) fn hash(
        &self,
        file: &File,
        len: u64,
        algorithm: Algorithm,
        pause: &mut dyn FnMut() -> bool,
    ) -> io::Result<Hasher> {
        let mut hasher = Hasher::new(algorithm);
        let mut piece = |bytes: &[u8]| {
            hasher.update(bytes);
            if pause() { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        };
        match self {
            Self::Uring(runtime) => uring::read(runtime, file, len, &mut piece)?,
            Self::Plain => plain::read(file, len, &mut piece)?,
        }
        Ok(hasher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spanfs_layer::Digest;

    fn check(reader: &Reader, len: usize, read: usize) {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let hasher = reader.hash(&file, read as u64, Algorithm::Sha256, &mut || true).unwrap();
        assert_eq!(hasher.finish(), Digest::of(&bytes[..read]), "{len} {read}");
    }

    #[test]
    fn both_readers_agree() {
        let uring = Reader::new();
        if matches!(uring, Reader::Plain) {
            assert!(std::env::var_os("SPANFS_TEST_STRICT").is_none(), "io_uring is refused here");
            eprintln!("skipped half: io_uring is refused here");
        }
        for reader in [&uring, &Reader::Plain] {
            check(reader, 0, 0);
            check(reader, 10, 10);
            check(reader, 3 * PIECE_LEN, 3 * PIECE_LEN);
            check(reader, 3 * PIECE_LEN + 5, 2 * PIECE_LEN + 17);
        }
    }

    #[test]
    fn a_short_file_and_a_stop_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        std::fs::write(&path, vec![0; PIECE_LEN]).unwrap();
        let file = File::open(&path).unwrap();
        for reader in [&Reader::new(), &Reader::Plain] {
            let len = PIECE_LEN as u64;
            let short = reader.hash(&file, len + 1, Algorithm::Sha256, &mut || true);
            assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let stopped = reader.hash(&file, len, Algorithm::Sha256, &mut || false);
            assert!(stopped.is_err());
        }
    }
}
