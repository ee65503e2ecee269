//! What an earlier run's journal is worth, given how the files look now. Pure.

use crate::journal::Record;
use crate::layer_file::Stamp;

/// How the files beside a journal look now; `None` where a file is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The layer file.
    pub(crate) layer: Option<Stamp>,
    /// The zTOC.
    pub(crate) ztoc: Option<Stamp>,
    /// The layer index.
    pub(crate) index: Option<Stamp>,
}

/// What can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Checksum that each span's bytes in the layer file must have, to be believed.
    pub(crate) claims: Vec<Option<u32>>,
    /// The layer file is complete, verified, durable, and nobody wrote to it since.
    pub(crate) sealed: bool,
    /// The kept zTOC is the one that was checked.
    pub(crate) ztoc_kept: bool,
    /// The kept index is the one that we made.
    pub(crate) index_made: bool,
}

/// Judge `records`, oldest first.
pub(crate) fn recover(records: &[Record], span_count: usize, found: &Found) -> Recovered {
    let mut claims = vec![None; span_count];
    let (mut sealed, mut ztoc, mut index) = (None, None, None);
    for record in records {
        match record {
            Record::Span { span, crc } => {
                if let Some(claim) = claims.get_mut(*span as usize) {
                    *claim = Some(*crc);
                }
            }
            // Not durable: the spans' checksums and another look at the whole decide.
            Record::Verified => {}
            Record::Sealed(stamp) => sealed = Some(*stamp),
            Record::ZtocKept(stamp) => ztoc = Some(*stamp),
            Record::IndexMade(stamp) => index = Some(*stamp),
        }
    }
    let same = |recorded: Option<Stamp>, found: Option<Stamp>| {
        recorded.is_some_and(|recorded| found == Some(recorded))
    };
    Recovered {
        claims,
        sealed: same(sealed, found.layer),
        ztoc_kept: same(ztoc, found.ztoc),
        index_made: same(index, found.index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Stamp = Stamp([1; 16]);
    const B: Stamp = Stamp([2; 16]);

    #[test]
    fn the_latest_claim_of_a_span_counts() {
        let records = [(0, 1), (2, 2), (0, 3)].map(|(span, crc)| Record::Span { span, crc });
        let recovered = recover(&records, 3, &Found::default());
        assert_eq!(recovered.claims, [Some(3), None, Some(2)]);
    }

    #[test]
    fn a_whole_is_believed_only_while_it_looks_the_same() {
        let check = |records: &[Record], layer: Option<Stamp>, sealed: bool| {
            let found = Found { layer, ..Found::default() };
            assert_eq!(recover(records, 0, &found).sealed, sealed, "{records:?} {layer:?}");
        };
        check(&[Record::Verified, Record::Sealed(A)], Some(A), true);
        check(&[Record::Sealed(A)], Some(B), false);
        check(&[Record::Sealed(A), Record::Sealed(B)], Some(B), true);
        check(&[Record::Sealed(A), Record::Sealed(B)], Some(A), false);
        check(&[Record::Sealed(A)], None, false);
        check(&[Record::Verified], Some(A), false);
        check(&[Record::IndexMade(A), Record::ZtocKept(A)], Some(A), false);
    }
}
