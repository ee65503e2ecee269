//! Bodies of answers, sound or faulty.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use crate::connection::Control;
use crate::store::Content;

/// Bytes of a frame: large enough to be cheap, small enough to share a link.
const FRAME_BYTES: u64 = 256 << 10;
/// How often a body that is to be cut looks whether its bytes have left.
const CUT_POLL: Duration = Duration::from_millis(2);

/// What happens to a body on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Damage {
    #[default]
    None,
    /// Nothing more behind these bytes.
    Stall(u64),
    /// Connection closed behind these bytes; the control says how.
    Cut(u64),
    /// Bit flipped there.
    Flip(u64),
    /// That many bytes at a time, with that pause.
    Drip(u64, Duration),
}

/// Body of an answer: a range of a blob, or a text.
pub(crate) struct Body {
    content: Content,
    range: Range<u64>,
    /// Bytes that the head promises; more than `range` for a cut body.
    promised: u64,
    sent: u64,
    damage: Damage,
    control: Arc<Control>,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    timer: Option<Pin<Box<Sleep>>>,
    flushes_before_cut: Option<u64>,
    dripping: VecDeque<Bytes>,
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::text(Bytes::new())
    }

    pub(crate) fn text(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self::range(Content::Memory(bytes), 0..len)
    }

    pub(crate) fn range(content: Content, range: Range<u64>) -> Self {
        Self {
            promised: range.end - range.start,
            content,
            range,
            sent: 0,
            damage: Damage::None,
            control: Arc::default(),
            reading: None,
            timer: None,
            flushes_before_cut: None,
            dripping: VecDeque::new(),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.promised
    }

    pub(crate) fn truncate(&mut self, len: u64) {
        self.range.end = self.range.end.min(self.range.start.saturating_add(len));
        self.promised = self.range.end - self.range.start;
    }

    pub(crate) fn damage(&mut self, damage: Damage, control: Arc<Control>) {
        self.control = control;
        self.damage = match damage {
            Damage::Flip(at) => Damage::Flip(at.min(self.promised.saturating_sub(1))),
            other => other,
        };
        if let Damage::Stall(after) | Damage::Cut(after) = damage {
            self.range.end = self.range.end.min(self.range.start.saturating_add(after));
        }
    }

    /// The next piece of the sound content.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(reading) = &mut self.reading {
            let piece = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            return Poll::Ready(Some(piece.unwrap_or_else(|error| Err(io::Error::other(error)))));
        }
        let start = self.range.start;
        let end = self.range.end.min(start + FRAME_BYTES);
        if start >= end {
            return Poll::Ready(None);
        }
        self.range.start = end;
        match &self.content {
            Content::Memory(bytes) => {
                let range = usize::try_from(start).unwrap_or(usize::MAX)
                    ..usize::try_from(end).unwrap_or(usize::MAX);
                Poll::Ready(Some(Ok(bytes.slice(range))))
            }
            Content::File(file, _) => {
                let file = Arc::clone(file);
                let len = usize::try_from(end - start).unwrap_or(usize::MAX);
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, start)?;
                    Ok(bytes.into())
                }));
                self.poll_piece(cx)
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, pause: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        ready!(timer.as_mut().poll(cx));
        self.timer = None;
        Poll::Ready(())
    }

    /// Fails once everything before the cut has been handed to the kernel.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let before = *self.flushes_before_cut.get_or_insert_with(|| self.control.flushes());
        loop {
            ready!(self.poll_timer(cx, CUT_POLL));
            if self.control.flushes() > before {
                return Poll::Ready(io::Error::other("cut as the fault script says"));
            }
        }
    }

    fn poll_damaged(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Damage::Drip(_, pause) = self.damage {
            if !self.dripping.is_empty() {
                ready!(self.poll_timer(cx, pause));
            }
            if let Some(drip) = self.dripping.pop_front() {
                return Poll::Ready(Some(Ok(drip)));
            }
        }
        let piece = match ready!(self.poll_piece(cx)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => {
                return match self.damage {
                    Damage::Stall(_) => Poll::Pending,
                    Damage::Cut(_) => self.poll_cut(cx).map(|error| Some(Err(error))),
                    _ => Poll::Ready(None),
                };
            }
        };
        match self.damage {
            Damage::Drip(bytes, _) => {
                let step = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
                let starts = (0..piece.len()).step_by(step);
                let drips =
                    starts.map(|at| piece.slice(at..piece.len().min(at.saturating_add(step))));
                self.dripping = drips.collect();
                self.poll_damaged(cx)
            }
            Damage::Flip(at) => Poll::Ready(Some(Ok(flip(piece, at.checked_sub(self.sent))))),
            _ => Poll::Ready(Some(Ok(piece))),
        }
    }
}

fn flip(piece: Bytes, at: Option<u64>) -> Bytes {
    let Some(at) = at.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < piece.len()) else {
        return piece;
    };
    let mut bytes = piece.to_vec();
    bytes[at] ^= 0x10;
    bytes.into()
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = ready!(self.poll_damaged(cx));
        if let Some(Ok(piece)) = &piece {
            self.sent += piece.len() as u64;
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.promised == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised - self.sent)
    }
}
