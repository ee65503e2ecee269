//! One reader's wait for several spans.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::{ReadError, ReadReply};

/// Replies once: when the last span came, or at the first that can't be had.
pub(crate) struct Gather {
    left: AtomicUsize,
    reply: Mutex<Option<ReadReply>>,
}

impl Gather {
    /// Waits for `count` spans.
    pub(crate) fn new(count: usize, reply: ReadReply) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(count), reply: Mutex::new(Some(reply)) })
    }

    /// One span came, or can't be had.
    pub(crate) fn done(&self, result: &Result<(), ReadError>) {
        let last = self.left.fetch_sub(1, Ordering::AcqRel) == 1;
        if last || result.is_err() {
            let reply = self.reply.lock().take();
            if let Some(reply) = reply {
                reply(result.clone());
            }
        }
    }
}

impl Drop for Gather {
    /// No reader is left without an answer, whatever went wrong above.
    fn drop(&mut self) {
        if let Some(reply) = self.reply.get_mut().take() {
            reply(Err(ReadError::Unavailable("the layer was closed during the read".into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    type Answers = mpsc::Receiver<Result<(), ReadError>>;

    fn gather(count: usize) -> (Arc<Gather>, Answers) {
        let (sender, receiver) = mpsc::channel();
        (Gather::new(count, Box::new(move |result| drop(sender.send(result)))), receiver)
    }

    #[test]
    fn replies_once() {
        let error = || Err(ReadError::Unavailable("x".into()));
        let check = |results: &[Result<(), ReadError>], answers: usize, good: bool| {
            let (gather, receiver) = gather(3);
            results.iter().for_each(|result| gather.done(result));
            let found: Vec<_> = receiver.try_iter().collect();
            assert_eq!(found.len(), answers, "{results:?}");
            assert!(found.iter().all(|answer| answer.is_ok() == good));
        };
        check(&[Ok(()), Ok(())], 0, true);
        check(&[Ok(()), Ok(()), Ok(())], 1, true);
        check(&[error()], 1, false);
        check(&[Ok(()), error(), Ok(())], 1, false);
        check(&[error(), error(), error()], 1, false);
    }

    #[test]
    fn a_forgotten_reader_is_answered() {
        let (gather, receiver) = gather(2);
        gather.done(&Ok(()));
        drop(gather);
        assert!(receiver.try_recv().unwrap().is_err());
    }
}
