//! SIGINT, SIGTERM and SIGHUP, turned into events.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A signal that ends the process, in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal(pub(crate) i32);

impl Signal {
    /// Exit code of a process that a signal ended, as shells have it.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(1)
    }
}

/// Until there is something to put in order, a signal ends the process at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Orderly(Arc<AtomicBool>);

impl Orderly {
    /// From now on signals are events.
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Send signals to `events` as soon as [`Orderly::begin`] was called.
pub(crate) fn listen<Event: From<Signal> + Send + 'static>(
    events: Sender<Event>,
) -> io::Result<Orderly> {
    let orderly = Orderly::default();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let listening = orderly.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever().map(Signal) {
            if !listening.0.load(Ordering::SeqCst) {
                std::process::exit(i32::from(signal.exit_code()));
            }
            if events.send(signal.into()).is_err() {
                return;
            }
        }
    })?;
    Ok(orderly)
}

/// A flag that signals set; the work looks at it.
pub(crate) fn flag() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        // A second signal ends a process that does not look.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}
