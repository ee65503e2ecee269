//! A plain tar, cut every so many bytes.

use spanfs_layer::ztoc::Restarts;

use super::BuildError;
use super::hashing::Cut;
use super::output::Output;

pub(super) struct StoredScan {
    span_size: u64,
    at: u64,
    next_cut: u64,
}

impl StoredScan {
    pub(super) fn new(span_size: u64) -> Self {
        assert!(span_size > 0);
        Self { span_size, at: 0, next_cut: 0 }
    }

    /// The next bytes; gives how many have come.
    pub(super) fn feed(
        &mut self,
        mut input: &[u8],
        output: &mut Output,
        cuts: &mut Vec<Cut>,
    ) -> Result<u64, BuildError> {
        let end = self.at + input.len() as u64;
        while self.next_cut < end {
            cuts.push(Cut { at: self.next_cut, is_shared: false });
            output.begin_span(self.next_cut);
            self.next_cut = self.next_cut.saturating_add(self.span_size);
        }
        self.at = end;
        while !input.is_empty() {
            let room = output.room()?;
            let len = room.len().min(input.len());
            if let (Some(room), Some((now, rest))) =
                (room.get_mut(..len), input.split_at_checked(len))
            {
                room.copy_from_slice(now);
                input = rest;
            }
            output.advance(len)?;
        }
        Ok(self.at)
    }

    pub(super) fn finish(self) -> Restarts {
        Restarts::Uncompressed { span_size: self.span_size }
    }
}
