//! Snapshots and mounts in the terms of the protocol.

use std::collections::BTreeMap;
use std::time::SystemTime;

use prost_types::Timestamp;

use super::proto::snapshots::{Info, Kind as ProtoKind};
use super::proto::types;
use crate::mounts::Mount;
use crate::state::{Kind, Labels, Snapshot};

pub(super) fn info(snapshot: &Snapshot) -> Info {
    Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone(),
        kind: kind(snapshot.kind).into(),
        created_at: Some(timestamp(snapshot.created)),
        updated_at: Some(timestamp(snapshot.updated)),
        labels: snapshot.labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    }
}

pub(super) fn kind(kind: Kind) -> ProtoKind {
    match kind {
        Kind::View => ProtoKind::View,
        Kind::Active => ProtoKind::Active,
        Kind::Committed => ProtoKind::Committed,
    }
}

pub(super) fn labels(labels: BTreeMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

pub(super) fn mounts(mount: Mount) -> Vec<types::Mount> {
    vec![types::Mount {
        r#type: mount.fs_type.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    }]
}

/// The store keeps no time before 1970, and no clock of ours shows one.
pub(super) fn timestamp(time: SystemTime) -> Timestamp {
    let duration = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: duration.as_secs().try_into().unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().try_into().unwrap_or(0),
    }
}
