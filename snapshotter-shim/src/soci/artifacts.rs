//! The record of artifacts: which zTOC is of which layer, which index of which image.
//!
//! One redb file, `artifacts.redb`, beside the peer's `artifacts.db`, which is never touched. It can
//! be made anew from the content store at any time. The file is open, and locked, only for the moment
//! of a transaction: a command that builds for an hour blocks nobody.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use spanfs_layer::Digest;

/// Digest → record as JSON.
const ARTIFACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("artifacts");
const FILE: &str = "artifacts.redb";

/// Wait for another process that has the file open: it writes a few records.
const LOCKED_TIME_MAX: Duration = Duration::from_secs(10);
const LOCKED_DELAY: Duration = Duration::from_millis(10);

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// SOCI index.
    Index,
    /// zTOC.
    Ztoc,
    /// Spans of a layer to prefetch.
    Prefetch,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is.
    pub kind: ArtifactKind,
    /// Its bytes.
    pub size: u64,
    /// Digest of the image manifest that an index is for; of the layer for all else.
    pub of: String,
    /// Digest of what the image's name stood for; empty but for indexes.
    pub image: String,
    /// Platform; empty but for indexes.
    pub platform: String,
    /// Media type of the blob.
    pub media_type: String,
    /// Media type of an index's config, which tells its version.
    pub artifact_type: String,
    /// Span size of a zTOC.
    pub span_size: u64,
    /// Seconds and nanoseconds since 1970.
    pub created: (u64, u32),
}

impl Artifact {
    /// When it was made.
    pub fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(self.created.0, self.created.1)
    }

    /// A time as records have it.
    pub fn time(time: SystemTime) -> (u64, u32) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (since.as_secs(), since.subsec_nanos())
    }
}

/// Why the record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactsError {
    /// The database.
    #[error("{attempt} the artifact records {}: {source}", path.display())]
    Database {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record that makes no sense.
    #[error("artifact records {}: {digest}: {reason}; soci rebuild-db makes them anew",
        path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which record.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The file. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Artifacts {
    path: PathBuf,
}

impl Artifacts {
    /// The records below the directory `root`.
    pub fn at(root: &Path) -> Self {
        Self { path: root.join(FILE) }
    }

    /// False before anything was recorded.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// The record of one artifact.
    pub fn get(&self, digest: &Digest) -> Result<Option<Artifact>, ArtifactsError> {
        Ok(self.all()?.into_iter().find(|(found, _)| found == digest).map(|(_, it)| it))
    }

    /// All records, rising by digest.
    pub fn all(&self) -> Result<Vec<(Digest, Artifact)>, ArtifactsError> {
        if !self.is_there() {
            return Ok(Vec::new());
        }
        let rows = self.with("reading", |database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(ARTIFACTS) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (digest, record) = row?;
                rows.push((digest.value().to_owned(), record.value().to_owned()));
            }
            Ok(rows)
        })?;
        rows.iter().map(|(digest, record)| self.decode(digest, record)).collect()
    }

    /// Record artifacts and forget others, all or nothing.
    pub fn change(
        &self,
        put: &[(Digest, Artifact)],
        removed: &[Digest],
    ) -> Result<(), ArtifactsError> {
        self.with("writing", |database| {
            let transaction = database.begin_write()?;
            {
                let mut table = transaction.open_table(ARTIFACTS)?;
                for digest in removed {
                    table.remove(digest.to_string().as_str())?;
                }
                for (digest, artifact) in put {
                    // Plain texts and numbers always have a JSON form.
                    let record = serde_json::to_vec(artifact).unwrap_or_default();
                    table.insert(digest.to_string().as_str(), record.as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// The zTOC of a layer with a span size, if one is recorded.
    pub fn ztoc(&self, layer: &Digest, span_size: u64) -> Result<Option<Digest>, ArtifactsError> {
        let layer = layer.to_string();
        let is_it = |artifact: &Artifact| {
            artifact.kind == ArtifactKind::Ztoc
                && artifact.of == layer
                && artifact.span_size == span_size
        };
        let all = self.all()?.into_iter();
        let newest = all.filter(|(_, it)| is_it(it)).max_by_key(|(_, it)| it.created);
        Ok(newest.map(|(digest, _)| digest))
    }

    fn decode(&self, digest: &str, record: &[u8]) -> Result<(Digest, Artifact), ArtifactsError> {
        let corrupt = |reason: String| {
            let (path, digest) = (self.path.clone(), digest.to_owned());
            ArtifactsError::Corrupt { path, digest, reason }
        };
        let artifact = serde_json::from_slice(record).map_err(|it| corrupt(it.to_string()))?;
        Ok((digest.parse().map_err(|it| corrupt(format!("{it}")))?, artifact))
    }

    fn with<T>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, ArtifactsError> {
        let fail = |source: redb::Error| {
            let (path, source) = (self.path.clone(), Box::new(source));
            ArtifactsError::Database { attempt, path, source }
        };
        let deadline = Instant::now() + LOCKED_TIME_MAX;
        let database = loop {
            match Database::create(&self.path) {
                Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < deadline => {
                    std::thread::sleep(LOCKED_DELAY);
                }
                database => break database.map_err(|error| fail(error.into()))?,
            }
        };
        work(&database).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(of: &str, span_size: u64, created: u64) -> Artifact {
        Artifact {
            kind: ArtifactKind::Ztoc,
            size: 5,
            of: of.to_owned(),
            image: String::new(),
            platform: String::new(),
            media_type: "m".to_owned(),
            artifact_type: String::new(),
            span_size,
            created: (created, 7),
        }
    }

    #[test]
    fn what_was_recorded_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::at(directory.path());
        assert!(!artifacts.is_there());
        assert_eq!(artifacts.all().unwrap(), []);
        assert!(!artifacts.is_there(), "reading makes nothing");
        let layer = Digest::of(b"layer");
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let of = layer.to_string();
        let put = [(a, artifact(&of, 4, 1)), (b, artifact(&of, 4, 2)), (c, artifact(&of, 8, 3))];
        artifacts.change(&put, &[]).unwrap();
        assert_eq!(artifacts.ztoc(&layer, 4).unwrap(), Some(b));
        assert_eq!(artifacts.ztoc(&layer, 8).unwrap(), Some(c));
        assert_eq!(artifacts.ztoc(&layer, 5).unwrap(), None);
        artifacts.change(&[], &[b, Digest::of(b"unknown")]).unwrap();
        assert_eq!(artifacts.ztoc(&layer, 4).unwrap(), Some(a));
        assert_eq!(artifacts.get(&c).unwrap(), Some(artifact(&of, 8, 3)));
        assert_eq!(artifacts.all().unwrap().len(), 2);
    }

    #[test]
    fn writers_wait_for_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::at(directory.path());
        std::thread::scope(|scope| {
            for n in 0..8_u8 {
                let artifacts = &artifacts;
                scope.spawn(move || {
                    let put = [(Digest::of(&[n]), artifact("x", n.into(), 0))];
                    artifacts.change(&put, &[]).unwrap();
                });
            }
        });
        assert_eq!(artifacts.all().unwrap().len(), 8);
    }
}
