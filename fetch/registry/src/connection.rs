//! A connection whose writes obey the link.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::link::{Pace, SharedLink};
use crate::stats::Counters;

/// What a request's body has to say to the connection that carries it.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// End by RST, not by FIN.
    reset: AtomicBool,
    /// Times that all written bytes had been handed to the kernel.
    flushes: AtomicU64,
}

impl Control {
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }
}

/// Bytes paid for at once: a millisecond at 500 Mbit/s, so that connections take fair turns.
const TURN_BYTES: usize = 64 << 10;
/// Timers tick in milliseconds; a shorter wait is made up by the next.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// TCP stream of the registry's side.
pub(crate) struct Shaped {
    io: TcpStream,
    link: Arc<SharedLink>,
    counters: Arc<Counters>,
    control: Arc<Control>,
    pace: Pace,
    wait: Option<Pin<Box<Sleep>>>,
    /// Bytes whose time has been reserved and has come.
    paid: usize,
}

impl Shaped {
    pub(crate) fn new(
        io: TcpStream,
        link: Arc<SharedLink>,
        counters: Arc<Counters>,
        control: Arc<Control>,
    ) -> Self {
        counters.update(|stats| {
            stats.connections += 1;
            stats.connections_open += 1;
        });
        let pace = Pace::new(Instant::now());
        Self { io, link, counters, control, pace, wait: None, paid: 0 }
    }

    /// Ready once some bytes may leave.
    fn poll_paid(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<()> {
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        if self.paid == 0 {
            self.paid = len.min(TURN_BYTES);
            let now = Instant::now();
            let until = self.link.reserve(&mut self.pace, now, self.paid);
            if until.saturating_duration_since(now) >= WAIT_MIN {
                let mut wait = Box::pin(tokio::time::sleep_until(until.into()));
                if wait.as_mut().poll(cx).is_pending() {
                    self.wait = Some(wait);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        self.counters.update(|stats| stats.connections_open -= 1);
        if self.control.reset.load(Ordering::Relaxed) {
            // Fails only where the socket is gone already, which is what was wanted.
            let _gone = self.io.set_zero_linger();
        }
    }
}

impl AsyncRead for Shaped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        let count = buffer.filled().len() - before;
        self.counters.update(|stats| stats.bytes_received += count as u64);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Shaped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_paid(cx, buffer.len()));
        let len = buffer.len().min(self.paid);
        let count = ready!(Pin::new(&mut self.io).poll_write(cx, &buffer[..len]))?;
        self.paid -= count;
        self.counters.update(|stats| stats.bytes_sent += count as u64);
        Poll::Ready(Ok(count))
    }

    /// One slice at a time: it keeps hyper from copying bodies into a buffer of its own.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices.iter().find(|slice| !slice.is_empty()) {
            Some(slice) => self.poll_write(cx, slice),
            None => Poll::Ready(Ok(0)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.control.flushes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
