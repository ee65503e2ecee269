//! Compressed bytes that are what their zTOC promises.

use spanfs_fetch::Fetched;
use spanfs_layer::{Digest, Restart, Span, SpanTable};

use super::error::{VerifyError, VerifyFault};
use super::splice::End;

/// Compressed bytes of one span. Built only against the span's digest, or where the user has
/// explicitly turned verification off.
pub struct VerifiedSpan {
    pub(super) layer: Digest,
    pub(super) number: usize,
    pub(super) span: Span,
    pub(super) end: End,
    pub(super) bytes: Vec<u8>,
    pub(super) headroom: usize,
}

impl VerifiedSpan {
    /// Compare `fetched` with the digest of span `number` of `table`, which belongs to `layer`.
    ///
    /// Bytes fetched with [`super::HEADROOM`] are later decoded where they lie.
    pub fn check(
        layer: &Digest,
        table: &SpanTable,
        number: usize,
        fetched: Fetched,
    ) -> Result<Self, VerifyError> {
        let span = Self::unverified(layer, table, number, fetched)?;
        let expected = span.span.digest;
        let mut hasher = spanfs_layer::Hasher::new(expected.algorithm());
        hasher.update(span.data());
        let found = hasher.finish();
        if found != expected {
            let fault = Box::new(VerifyFault::Digest { found, expected });
            return Err(VerifyError { layer: *layer, number, fault });
        }
        Ok(span)
    }

    /// Take `fetched` for what it claims to be: for users who set `disable_verification`. Only its
    /// length is compared.
    pub fn unverified(
        layer: &Digest,
        table: &SpanTable,
        number: usize,
        fetched: Fetched,
    ) -> Result<Self, VerifyError> {
        let fail = |fault| VerifyError { layer: *layer, number, fault: Box::new(fault) };
        let spans = table.spans();
        let span =
            spans.get(number).ok_or_else(|| fail(VerifyFault::NoSpan { count: spans.len() }))?;
        let expected = span.compressed.end.checked_since(span.compressed.start).unwrap_or(0);
        let found = fetched.data().len() as u64;
        if found != expected {
            return Err(fail(VerifyFault::Length { found, expected }));
        }
        let end = match spans.get(number + 1).map(|next| next.restart) {
            None if span.compressed.end.0 < table.compressed_len() => End::Unknown,
            None => End::Blob,
            Some(Restart::Deflate { bits, .. }) => End::Inside(bits),
            Some(Restart::Stored | Restart::ZstdFrame) => End::Inside(0),
        };
        let headroom = fetched.headroom.min(fetched.bytes.len());
        let (span, bytes) = (span.clone(), fetched.bytes);
        Ok(Self { layer: *layer, number, span, end, bytes, headroom })
    }

    /// Layer that the span belongs to.
    pub fn layer(&self) -> &Digest {
        &self.layer
    }

    /// Its compressed bytes.
    pub(crate) fn data(&self) -> &[u8] {
        self.bytes.get(self.headroom..).unwrap_or_default()
    }

    /// Its number in the layer's span table.
    pub fn number(&self) -> usize {
        self.number
    }
}
