//! The 32 KiB windows of a layer's checkpoints, read from the zTOC kept on disk when needed.
//!
//! At 32 KiB a span they would be most of our memory. Their sums stay, so that a disk that changed
//! them can't make us inflate a span wrongly.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use spanfs_layer::ztoc::WINDOW_LEN;
use spanfs_layer::{Restart, SpanTable};

use crate::crc::crc32;

/// Windows of all spans of a layer.
#[derive(Debug)]
pub(crate) struct Windows {
    ztoc: KeptZtoc,
    /// CRC-32 of each span's window; 0 where it has none.
    sums: Box<[u32]>,
}

impl Windows {
    /// Windows of `table`'s spans in `ztoc`, whose checked content is `bytes`; `None` if a window
    /// lies outside of it.
    pub(crate) fn new(ztoc: KeptZtoc, bytes: &[u8], table: &SpanTable) -> Option<Self> {
        let sum = |restart| match restart {
            Restart::Deflate { window_at, .. } => window(bytes, window_at).map(crc32),
            Restart::Stored | Restart::ZstdFrame => Some(0),
        };
        let sums = table.spans().iter().map(|span| sum(span.restart)).collect::<Option<_>>()?;
        Some(Self { ztoc, sums })
    }

    /// Windows whose sums are known: the zTOC need not be read.
    pub(crate) fn known(ztoc: File, sums: Box<[u32]>) -> Self {
        Self { ztoc: ztoc.into(), sums }
    }

    /// See to it that the zTOC stands beside the layer file.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.ztoc.file().map(drop)
    }

    /// Sums of all spans' windows.
    pub(crate) fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// All of the zTOC as it stands on the disk, unchecked.
    pub(crate) fn ztoc(&self) -> io::Result<Arc<[u8]>> {
        let file = self.ztoc.file()?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        file.read_exact_at(Arc::get_mut(&mut bytes).unwrap_or_default(), 0)?;
        Ok(bytes)
    }

    /// The window of span `number`, or `None` where its restart needs none.
    pub(crate) fn read(&self, number: usize, restart: Restart) -> io::Result<Option<Window>> {
        let Restart::Deflate { window_at, .. } = restart else { return Ok(None) };
        let mut window = Box::new([0; WINDOW_LEN]);
        self.ztoc.file()?.read_exact_at(window.as_mut_slice(), window_at)?;
        let (found, expected) = (crc32(window.as_slice()), self.sums.get(number).copied());
        if Some(found) != expected {
            let message = format!("window of span {number} in the kept zTOC has changed on disk");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Some(window))
    }
}

/// The file of a zTOC, which another thread may still be writing.
#[derive(Debug)]
pub(crate) struct KeptZtoc {
    file: OnceLock<Result<File, io::ErrorKind>>,
    writing: Mutex<Option<JoinHandle<io::Result<File>>>>,
}

impl From<File> for KeptZtoc {
    fn from(file: File) -> Self {
        Self { file: OnceLock::from(Ok(file)), writing: Mutex::default() }
    }
}

impl From<JoinHandle<io::Result<File>>> for KeptZtoc {
    fn from(thread: JoinHandle<io::Result<File>>) -> Self {
        Self { file: OnceLock::new(), writing: Mutex::new(Some(thread)) }
    }
}

impl KeptZtoc {
    /// Once it is written.
    fn file(&self) -> io::Result<&File> {
        let file = self.file.get_or_init(|| {
            let Some(thread) = self.writing.lock().take() else {
                return Err(io::ErrorKind::Other);
            };
            let written = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.map_err(|error| error.kind())
        });
        file.as_ref().map_err(|kind| (*kind).into())
    }
}

impl Drop for KeptZtoc {
    fn drop(&mut self) {
        // Whoever opens the layer next writes the same file.
        if let Some(thread) = self.writing.get_mut().take() {
            drop(thread.join());
        }
    }
}

/// One window.
pub(crate) type Window = Box<[u8; WINDOW_LEN]>;

fn window(ztoc: &[u8], at: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    ztoc.get(at..at.checked_add(WINDOW_LEN)?)
}
