//! The durable record of a node's snapshots: one redb file, one transaction a change.
//!
//! Why redb: pure Rust, no background thread, copy-on-write pages with checksums, so that a kill or
//! a power cut at any instruction leaves the last committed transaction; maintained, and its file
//! format is stable since 1.0.

use std::path::Path;
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::state::{Change, Kind, Snapshot, State, Usage};

/// Name → record as JSON.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// `format` → version of what stands here; `last_id` → highest id ever given.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// Changing it makes older files unreadable: add a step to [`Store::open`] instead.
const FORMAT: u64 = 1;

/// Why the record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be opened, read or written.
    #[error("{attempt} the snapshot store {path}")]
    Database {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: String,
        /// What the database says.
        #[source]
        source: Box<redb::Error>,
    },
    /// What it says makes no sense.
    #[error("snapshot store {path}: {problem}")]
    Corrupt {
        /// The file.
        path: String,
        /// What was found and expected.
        problem: String,
    },
}

/// The file.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    id: u64,
    kind: char,
    parent: String,
    labels: Vec<(String, String)>,
    /// Since 1970, seconds and nanoseconds.
    created: (u64, u32),
    updated: (u64, u32),
    usage: (u64, u64),
}

impl Store {
    /// Open or make the file and read the state that it keeps.
    pub fn open(path: &Path) -> Result<(Self, State), StoreError> {
        let shown = path.display().to_string();
        let database = Database::create(path).map_err(|e| fail("opening", &shown, e))?;
        let store = Self { database, path: shown };
        let state = store.load()?;
        Ok((store, state))
    }

    /// Make a change durable. When this returns, it survives a power cut.
    pub fn write(&self, change: &Change, last_id: u64) -> Result<(), StoreError> {
        let error = |e: redb::Error| fail("writing", &self.path, e);
        let transaction = self.database.begin_write().map_err(|e| error(e.into()))?;
        {
            let mut table = transaction.open_table(SNAPSHOTS).map_err(|e| error(e.into()))?;
            if let Some(name) = &change.removed {
                table.remove(name.as_str()).map_err(|e| error(e.into()))?;
            }
            if let Some(snapshot) = &change.put {
                let record = encode(snapshot);
                table
                    .insert(snapshot.name.as_str(), record.as_slice())
                    .map_err(|e| error(e.into()))?;
            }
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| error(e.into()))?;
            let id = change.put.as_ref().map_or(last_id, |snapshot| last_id.max(snapshot.id));
            numbers.insert("last_id", id).map_err(|e| error(e.into()))?;
        }
        transaction.commit().map_err(|e| error(e.into()))
    }

    fn load(&self) -> Result<State, StoreError> {
        let error = |e: redb::Error| fail("reading", &self.path, e);
        let corrupt = |problem: String| StoreError::Corrupt { path: self.path.clone(), problem };
        let transaction = self.database.begin_write().map_err(|e| error(e.into()))?;
        {
            transaction.open_table(SNAPSHOTS).map_err(|e| error(e.into()))?;
            let mut numbers = transaction.open_table(NUMBERS).map_err(|e| error(e.into()))?;
            let found = numbers.get("format").map_err(|e| error(e.into()))?.map(|v| v.value());
            match found {
                None => drop(numbers.insert("format", FORMAT).map_err(|e| error(e.into()))?),
                Some(FORMAT) => {}
                Some(other) => {
                    return Err(corrupt(format!("format {other}, this version reads {FORMAT}")));
                }
            }
        }
        transaction.commit().map_err(|e| error(e.into()))?;

        let transaction = self.database.begin_read().map_err(|e| error(e.into()))?;
        let table = transaction.open_table(SNAPSHOTS).map_err(|e| error(e.into()))?;
        let numbers = transaction.open_table(NUMBERS).map_err(|e| error(e.into()))?;
        let last_id =
            numbers.get("last_id").map_err(|e| error(e.into()))?.map_or(0, |value| value.value());
        let mut snapshots = Vec::new();
        for row in table.iter().map_err(|e| error(e.into()))? {
            let (name, record) = row.map_err(|e| error(e.into()))?;
            let snapshot = decode(name.value(), record.value())
                .map_err(|problem| corrupt(format!("record {:?}: {problem}", name.value())))?;
            snapshots.push(snapshot);
        }
        State::restore(snapshots, last_id).map_err(corrupt)
    }
}

fn fail(attempt: &'static str, path: &str, source: impl Into<redb::Error>) -> StoreError {
    StoreError::Database { attempt, path: path.to_owned(), source: Box::new(source.into()) }
}

fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let record = Record {
        id: snapshot.id,
        kind: match snapshot.kind {
            Kind::View => 'v',
            Kind::Active => 'a',
            Kind::Committed => 'c',
        },
        parent: snapshot.parent.clone(),
        labels: snapshot.labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        created: since_1970(snapshot.created),
        updated: since_1970(snapshot.updated),
        usage: (snapshot.usage.bytes, snapshot.usage.inodes),
    };
    // Plain strings and numbers always have a JSON form.
    serde_json::to_vec(&record).unwrap_or_default()
}

fn decode(name: &str, record: &[u8]) -> Result<Snapshot, String> {
    let record: Record = serde_json::from_slice(record).map_err(|e| e.to_string())?;
    Ok(Snapshot {
        name: name.to_owned(),
        id: record.id,
        kind: match record.kind {
            'v' => Kind::View,
            'a' => Kind::Active,
            'c' => Kind::Committed,
            other => return Err(format!("kind {other:?} is none of v, a, c")),
        },
        parent: record.parent,
        labels: record.labels.into_iter().collect(),
        created: time(record.created)?,
        updated: time(record.updated)?,
        usage: Usage { bytes: record.usage.0, inodes: record.usage.1 },
    })
}

fn since_1970(time: SystemTime) -> (u64, u32) {
    let duration = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (duration.as_secs(), duration.subsec_nanos())
}

fn time((seconds, nanoseconds): (u64, u32)) -> Result<SystemTime, String> {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())))
        .ok_or_else(|| format!("time {seconds}.{nanoseconds} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Labels};

    fn create(key: &str, parent: &str) -> Command {
        Command::Create {
            key: key.into(),
            kind: Kind::Active,
            parent: parent.into(),
            labels: [("l", "1")].into_iter().collect(),
        }
    }

    fn perform(store: &Store, state: &mut State, command: Command) {
        let now = SystemTime::UNIX_EPOCH + Duration::new(5, 123_456_789);
        let change = state.handle(command, now).unwrap();
        store.write(&change, state.last_id()).unwrap();
        state.apply(change);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots.redb");
        let (store, mut state) = Store::open(&path).unwrap();
        perform(&store, &mut state, create("a", ""));
        perform(
            &store,
            &mut state,
            Command::Commit {
                name: "A".into(),
                key: "a".into(),
                labels: Labels::default(),
                parent: String::new(),
                usage: Usage { bytes: 1 << 40, inodes: 3 },
            },
        );
        perform(&store, &mut state, create("b", "A"));
        perform(&store, &mut state, create("c", "A"));
        perform(&store, &mut state, Command::Remove { name: "c".into() });
        drop(store);
        let (_, again) = Store::open(&path).unwrap();
        assert_eq!(again.walk().collect::<Vec<_>>(), state.walk().collect::<Vec<_>>());
        assert_eq!(again.last_id(), 3, "an id is never given twice");
    }

    #[test]
    fn what_is_no_store_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots.redb");
        std::fs::write(&path, b"not a database, and long enough to be looked at".repeat(200))
            .unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.to_string().contains("snapshots.redb"), "{error}");
    }
}
