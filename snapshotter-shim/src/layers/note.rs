//! What is kept of a layer beside its snapshot, so that it can be shown again without asking anybody.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use spanfs_layer::Digest;
use spanfs_layer::oci::Descriptor;

use super::decisions::Outcome;

/// Name in the snapshot's directory.
const NAME: &str = "layer.json";
/// Changing it makes older ones unreadable: read both instead.
const FORMAT: u32 = 1;
/// A note is a few hundred bytes.
const LEN_MAX: u64 = 64 << 10;

/// A layer that a snapshot shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    format: u32,
    /// The image that it was fetched for: `host/repository:tag`.
    pub(super) image: String,
    /// Manifest of that image.
    pub(super) manifest: Digest,
    /// Config of that image.
    pub(super) config: Digest,
    /// Place of the layer in that image; 0 is the lowest.
    pub(super) position: usize,
    /// Layers of that image.
    pub(super) count: usize,
    media_type: String,
    /// The blob.
    pub(super) layer: Digest,
    /// Bytes of the blob.
    pub(super) size: u64,
    /// Its tar.
    pub(super) diff_id: Digest,
    /// Its zTOC; none for a layer that can't have one.
    pub(super) ztoc: Option<Digest>,
    /// Bytes of the zTOC, for it may have to be fetched again; notes of older versions don't say.
    #[serde(default)]
    pub(super) ztoc_len: Option<u64>,
    /// Whether nothing lies below.
    pub(super) lowest: bool,
    /// How it came, for operators; notes of older versions don't say.
    #[serde(default)]
    pub(super) how: Option<How>,
    /// containerd's namespace of who pulled it, where that is known; notes of older versions don't say.
    #[serde(default)]
    pub(super) namespace: Option<String>,
}

/// How a layer came, and why so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct How {
    pub(super) outcome: Outcome,
    pub(super) reason: String,
}

impl Note {
    pub(super) fn new(descriptor: &Descriptor, diff_id: Digest, image: &Place<'_>) -> Self {
        Self {
            format: FORMAT,
            image: image.name.to_owned(),
            manifest: image.manifest,
            config: image.config,
            position: image.position,
            count: image.count,
            media_type: descriptor.media_type.clone(),
            layer: descriptor.digest,
            size: descriptor.size,
            diff_id,
            ztoc: None,
            ztoc_len: None,
            lowest: image.lowest,
            how: None,
            namespace: None,
        }
    }

    /// Whether its content comes on demand.
    pub(super) fn is_lazy(&self) -> bool {
        self.how.as_ref().is_some_and(|how| how.outcome == Outcome::Lazy)
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.layer, self.size)
    }

    /// Write it into a snapshot's directory. When this returns, it survives a power cut.
    pub(super) fn write(&self, snapshot: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut file = File::create(snapshot.join(NAME))?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(snapshot)?.sync_all()
    }

    /// The note of a snapshot; none for one whose content is its own.
    pub(super) fn read(snapshot: &Path) -> io::Result<Option<Self>> {
        let path = snapshot.join(NAME);
        let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.len() > LEN_MAX => {
                let len = metadata.len();
                return Err(wrong(format!("{len} bytes, at most {LEN_MAX} are a note")));
            }
            Ok(_) => {}
        }
        let note: Self =
            serde_json::from_slice(&fs::read(path)?).map_err(|error| wrong(error.to_string()))?;
        match note.format {
            FORMAT => Ok(Some(note)),
            other => Err(wrong(format!("format {other}, this version reads {FORMAT}"))),
        }
    }
}

/// An image and a place in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) name: &'a str,
    pub(super) manifest: Digest,
    pub(super) config: Digest,
    pub(super) position: usize,
    pub(super) count: usize,
    pub(super) lowest: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again_and_nonsense_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(directory.path()).unwrap(), None);
        let digest = Digest::of(b"x");
        let place = Place {
            name: "r.example/a:1",
            manifest: digest,
            config: digest,
            position: 1,
            count: 3,
            lowest: false,
        };
        let descriptor = Descriptor::new("application/x", Digest::of(b"y"), 7);
        let note = Note { ztoc: Some(digest), ..Note::new(&descriptor, digest, &place) };
        note.write(directory.path()).unwrap();
        assert_eq!(Note::read(directory.path()).unwrap(), Some(note.clone()));
        assert_eq!(note.descriptor(), descriptor);
        for text in ["", "{}", "\0\0\0"] {
            fs::write(directory.path().join(NAME), text).unwrap();
            assert!(Note::read(directory.path()).is_err(), "{text:?}");
        }
        Note { format: 9, ..note }.write(directory.path()).unwrap();
        let error = Note::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains("format 9"), "{error}");
    }
}
