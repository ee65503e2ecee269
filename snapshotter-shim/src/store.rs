//! The durable record of a node's snapshots: one redb file, one transaction a change.
//!
//! Why redb: pure Rust, no background thread, copy-on-write pages with checksums, so that a kill or
//! a power cut at any instruction leaves the last committed transaction; maintained, and its file
//! format is stable since 1.0.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::state::{Change, Kind, Listed, Snapshot, State, Usage};

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
    #[error("{attempt} the snapshot store {}", path.display())]
    Database {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: Box<redb::Error>,
    },
    /// What it says makes no sense.
    #[error("snapshot store {}: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found and expected.
        problem: String,
    },
}

/// The file.
#[derive(Debug)]
pub struct Store {
    /// None after a failed write: redb wants to be opened anew then.
    database: Option<Database>,
    path: PathBuf,
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

impl StoreError {
    /// Whether the disk has no room.
    pub fn is_full(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        use ErrorKind::{QuotaExceeded, StorageFull};
        matches!(&**source, redb::Error::Io(e) if matches!(e.kind(), StorageFull | QuotaExceeded))
    }
}

impl Store {
    /// Open or make the file and read the state that it keeps.
    pub fn open(path: &Path) -> Result<(Self, State), StoreError> {
        let mut store = Self { database: None, path: path.to_owned() };
        let database = store.connect()?;
        store.check_format(&database)?;
        let state = store.load(&database)?;
        store.database = Some(database);
        Ok((store, state))
    }

    /// Make a change to `state` durable. When this returns, it survives a power cut.
    ///
    /// Whether a failed write reached the disk is unknown, so the next one writes all of `state` again:
    /// it is what callers were told.
    pub fn write(&mut self, change: &Change, state: &State) -> Result<(), StoreError> {
        let (database, scope) = match self.database.take() {
            Some(database) => (database, Scope::Change),
            None => (self.connect()?, Scope::All),
        };
        self.transact(&database, change, state, scope)
            .map_err(|source| self.fail("writing", source))?;
        self.database = Some(database);
        Ok(())
    }

    /// As after a failed write.
    #[cfg(test)]
    pub(crate) fn rewrite_with_next(&mut self) {
        self.database = None;
    }

    fn connect(&self) -> Result<Database, StoreError> {
        Database::create(&self.path).map_err(|source| self.fail("opening", source.into()))
    }

    fn transact(
        &self,
        database: &Database,
        change: &Change,
        state: &State,
        scope: Scope,
    ) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(SNAPSHOTS)?;
            if scope == Scope::All {
                table.retain(|_, _| false)?;
                for snapshot in state.walk() {
                    table.insert(snapshot.name.as_str(), encode(snapshot).as_slice())?;
                }
            }
            if let Some(name) = &change.removed {
                table.remove(name.as_str())?;
            }
            if let Some(snapshot) = &change.put {
                table.insert(snapshot.name.as_str(), encode(snapshot).as_slice())?;
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            let id = change.put.as_ref().map_or(0, |snapshot| snapshot.id);
            numbers.insert("last_id", id.max(state.last_id()))?;
        }
        Ok(transaction.commit()?)
    }

    fn check_format(&self, database: &Database) -> Result<(), StoreError> {
        let found = Self::format(database).map_err(|source| self.fail("reading", source))?;
        match found {
            FORMAT => Ok(()),
            other => Err(self.corrupt(format!("format {other}, this version reads {FORMAT}"))),
        }
    }

    /// The file's format; a new file gets ours.
    fn format(database: &Database) -> Result<u64, redb::Error> {
        let transaction = database.begin_write()?;
        let found = {
            transaction.open_table(SNAPSHOTS)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            let found = numbers.get("format")?.map(|value| value.value());
            if found.is_none() {
                numbers.insert("format", FORMAT)?;
            }
            found.unwrap_or(FORMAT)
        };
        transaction.commit()?;
        Ok(found)
    }

    fn load(&self, database: &Database) -> Result<State, StoreError> {
        let (rows, last_id) =
            Self::rows(database).map_err(|source| self.fail("reading", source))?;
        let snapshots = rows
            .iter()
            .map(|(name, record)| {
                decode(name, record)
                    .map_err(|problem| self.corrupt(format!("record {name:?}: {problem}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        State::restore(snapshots, last_id).map_err(|problem| self.corrupt(problem))
    }

    fn rows(database: &Database) -> Result<(Vec<Row>, u64), redb::Error> {
        let transaction = database.begin_read()?;
        let table = transaction.open_table(SNAPSHOTS)?;
        let numbers = transaction.open_table(NUMBERS)?;
        let last_id = numbers.get("last_id")?.map_or(0, |value| value.value());
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (name, record) = row?;
            rows.push((name.value().to_owned(), record.value().to_owned()));
        }
        Ok((rows, last_id))
    }

    fn fail(&self, attempt: &'static str, source: redb::Error) -> StoreError {
        StoreError::Database { attempt, path: self.path.clone(), source: Box::new(source) }
    }

    fn corrupt(&self, problem: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), problem }
    }
}

/// A name and its record.
type Row = (String, Vec<u8>);

/// What one transaction writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Change,
    All,
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
        listed: Listed::default(),
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
            id: 0,
            key: key.into(),
            kind: Kind::Active,
            parent: parent.into(),
            labels: [("l", "1")].into_iter().collect(),
        }
    }

    fn perform(store: &mut Store, state: &mut State, mut command: Command) {
        if let Command::Create { id, .. } = &mut command {
            *id = state.last_id() + 1;
        }
        let now = SystemTime::UNIX_EPOCH + Duration::new(5, 123_456_789);
        let change = state.handle(command, now).unwrap();
        store.write(&change, state).unwrap();
        state.apply(change);
    }

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots.redb");
        let (mut store, mut state) = Store::open(&path).unwrap();
        perform(&mut store, &mut state, create("a", ""));
        perform(
            &mut store,
            &mut state,
            Command::Commit {
                name: "A".into(),
                key: "a".into(),
                labels: Labels::default(),
                parent: String::new(),
                usage: Usage { bytes: 1 << 40, inodes: 3 },
            },
        );
        perform(&mut store, &mut state, create("b", "A"));
        perform(&mut store, &mut state, create("c", "A"));
        perform(&mut store, &mut state, Command::Remove { name: "c".into() });
        drop(store);
        let (_, again) = Store::open(&path).unwrap();
        assert_eq!(again.walk().collect::<Vec<_>>(), state.walk().collect::<Vec<_>>());
        assert_eq!(again.last_id(), 3, "an id is never given twice");
    }

    #[test]
    fn after_a_failed_write_the_file_says_what_callers_were_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshots.redb");
        let (mut store, mut state) = Store::open(&path).unwrap();
        perform(&mut store, &mut state, create("kept", ""));
        perform(&mut store, &mut state, create("removed", ""));
        // Both reached the disk, but their callers were told of a failure.
        let now = SystemTime::UNIX_EPOCH;
        let mut doubtful = state.clone();
        perform(&mut store, &mut doubtful, create("doubtful", ""));
        perform(&mut store, &mut doubtful, Command::Remove { name: "kept".into() });
        store.rewrite_with_next();
        let change = state.handle(Command::Remove { name: "removed".into() }, now).unwrap();
        store.write(&change, &state).unwrap();
        state.apply(change);
        drop(store);
        let (_, again) = Store::open(&path).unwrap();
        assert_eq!(again.walk().collect::<Vec<_>>(), state.walk().collect::<Vec<_>>());
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
