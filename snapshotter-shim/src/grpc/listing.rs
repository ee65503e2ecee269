//! Messages of a listing: thousands of snapshots, each encoded once and kept so until it changes.

use std::sync::Arc;

use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    DecodeContext, WireType, bytes, encode_key, encode_varint, encoded_len_varint, int32, key_len,
    message, skip_field,
};
use prost::{DecodeError, Message};
use tonic::Status;

use super::info::{kind, timestamp};
use super::proto::snapshots::Info;
use crate::state::Snapshot;

/// `ListSnapshotsResponse`, its entries as they are encoded: each with key and length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(Vec<u8>);

/// Its only field.
const INFO: u32 = 1;

/// The same, decoded.
#[derive(Clone, PartialEq, Message)]
struct Infos {
    #[prost(message, repeated, tag = "1")]
    info: Vec<Info>,
}

impl Listing {
    /// Its entries.
    pub fn infos(&self) -> Result<Vec<Info>, DecodeError> {
        Ok(Infos::decode(self.0.as_slice())?.info)
    }
}

/// Fields of an entry.
mod field {
    pub(super) const NAME: u32 = 1;
    pub(super) const PARENT: u32 = 2;
    pub(super) const KIND: u32 = 3;
    pub(super) const CREATED: u32 = 4;
    pub(super) const UPDATED: u32 = 5;
    pub(super) const LABELS: u32 = 6;
    /// Of a label.
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// Bytes after which a message ends: few enough that a client reads one while the next is made, many
/// enough that messages themselves cost nothing. Clients take 4 MiB at least.
const MESSAGE_LEN: usize = 64 << 10;

/// A listing, cut into messages as they are asked for.
#[derive(Debug)]
pub struct Listings(std::vec::IntoIter<Arc<Snapshot>>);

impl Listings {
    pub(super) fn new(snapshots: Vec<Arc<Snapshot>>) -> Self {
        Self(snapshots.into_iter())
    }
}

impl Iterator for Listings {
    type Item = Result<Listing, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut encoded = Vec::with_capacity(MESSAGE_LEN + MESSAGE_LEN / 8);
        while encoded.len() < MESSAGE_LEN
            && let Some(snapshot) = self.0.next()
        {
            encoded.extend_from_slice(snapshot.listed.get_or_make(|| entry(&snapshot)));
        }
        (!encoded.is_empty()).then_some(Ok(Listing(encoded)))
    }
}

/// An entry with its key and length.
fn entry(snapshot: &Snapshot) -> Box<[u8]> {
    let (mut info, mut entry) = (Vec::new(), Vec::new());
    put_info(snapshot, &mut info);
    put_bytes(INFO, &info, &mut entry);
    entry.into()
}

fn put_info(snapshot: &Snapshot, out: &mut Vec<u8>) {
    put_text(field::NAME, &snapshot.name, out);
    put_text(field::PARENT, &snapshot.parent, out);
    int32::encode(field::KIND, &kind(snapshot.kind).into(), out);
    message::encode(field::CREATED, &timestamp(snapshot.created), out);
    message::encode(field::UPDATED, &timestamp(snapshot.updated), out);
    for (key, value) in snapshot.labels.iter() {
        encode_key(field::LABELS, WireType::LengthDelimited, out);
        let len = text_len(field::KEY, key) + text_len(field::VALUE, value);
        encode_varint(len as u64, out);
        put_text(field::KEY, key, out);
        put_text(field::VALUE, value, out);
    }
}

/// Empty texts are left out, as the protocol wants it.
fn put_text(field: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        put_bytes(field, text.as_bytes(), out);
    }
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn text_len(field: u32, text: &str) -> usize {
    match text.len() {
        0 => 0,
        len => key_len(field) + encoded_len_varint(len as u64) + len,
    }
}

impl Message for Listing {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != INFO {
            return skip_field(wire_type, tag, buffer, context);
        }
        let mut entry = Bytes::new();
        bytes::merge(wire_type, &mut entry, buffer, context)?;
        put_bytes(INFO, &entry, &mut self.0);
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::grpc::info::info;
    use crate::state::{Kind, Labels, Listed, Usage};

    #[test]
    fn entries_are_those_of_the_generated_code() {
        let at =
            |seconds, nanoseconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        let long = "x".repeat(200);
        let snapshot = |kind, parent: &str, labels: &[(&str, &str)], created| {
            Arc::new(Snapshot {
                name: "default/1/a".into(),
                id: 7,
                kind,
                parent: parent.into(),
                labels: labels.iter().copied().collect::<Labels>(),
                created,
                updated: at(1_700_000_000, 999_999_999),
                usage: Usage::default(),
                listed: Listed::default(),
            })
        };
        let snapshots = vec![
            snapshot(Kind::View, "", &[], at(0, 0)),
            snapshot(Kind::Active, "default/2/b", &[("a", "b"), ("long", &long)], at(0, 1)),
            snapshot(Kind::Committed, &long, &[("", "of no name")], at(1 << 33, 0)),
        ];
        let expected: Vec<Info> = snapshots.iter().map(|snapshot| info(snapshot)).collect();
        let sent = Listings::new(snapshots).next().unwrap().unwrap().encode_to_vec();
        assert_eq!(sent, Infos { info: expected.clone() }.encode_to_vec());
        let received = Listing::decode(sent.as_slice()).unwrap();
        assert_eq!(received.infos().unwrap(), expected);
        assert!(Listing::decode(&sent[..sent.len() - 1]).is_err(), "cut short");
    }
}
