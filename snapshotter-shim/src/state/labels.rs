//! Labels of a snapshot and the field masks that change them.

use std::collections::BTreeMap;

use super::Refusal;

/// Chain id of the image layer that a snapshot is to hold; its presence tells the extraction of a
/// layer from a container.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Wanted uids of a container's files, as `container:host:size` entries joined by commas.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// The same of gids.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// Longest label, key and value together, in bytes (containerd's `labels.Validate`).
const LABEL_LEN_MAX: usize = 4096;

/// Labels by key. An empty value means that there is no such label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// A label's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Give a label a value; an empty one removes it.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        let (key, value) = (key.into(), value.into());
        if value.is_empty() {
            self.0.remove(&key);
        } else {
            self.0.insert(key, value);
        }
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The labels, if each is short enough.
    pub(super) fn checked(self) -> Result<Self, Refusal> {
        match self.0.iter().find(|(key, value)| key.len() + value.len() > LABEL_LEN_MAX) {
            None => Ok(self),
            Some((key, value)) => Err(Refusal::Invalid(format!(
                "label {key:.64} has {} bytes with its value, at most {LABEL_LEN_MAX} are allowed",
                key.len() + value.len()
            ))),
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut all = Self::default();
        for (key, value) in labels {
            all.set(key, value);
        }
        all
    }
}

/// Which labels an update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelMask {
    /// All: they are replaced.
    All,
    /// Only these keys: each is set to its new value, or removed where there is none.
    Keys(Vec<String>),
}

impl LabelMask {
    /// From the paths of a protobuf field mask: none or `labels` for all, `labels.KEY` for one; a key
    /// may itself contain dots.
    pub fn from_paths<S: AsRef<str>>(paths: &[S]) -> Result<Self, Refusal> {
        if paths.is_empty() || paths.iter().any(|path| path.as_ref() == "labels") {
            let of_labels = |path: &&str| *path == "labels" || path.starts_with("labels.");
            return match paths.iter().map(AsRef::as_ref).find(|path| !of_labels(path)) {
                Some(other) => Err(Self::refuse(other)),
                None => Ok(Self::All),
            };
        }
        let key = |path: &S| match path.as_ref().strip_prefix("labels.") {
            Some(key) if !key.is_empty() => Ok(key.to_owned()),
            _ => Err(Self::refuse(path.as_ref())),
        };
        paths.iter().map(key).collect::<Result<_, _>>().map(Self::Keys)
    }

    fn refuse(path: &str) -> Refusal {
        Refusal::Invalid(format!("cannot update field {path:?}, only labels can be changed"))
    }

    pub(super) fn apply(&self, old: &mut Labels, new: Labels) -> Result<(), Refusal> {
        let new = new.checked()?;
        match self {
            Self::All => *old = new,
            Self::Keys(keys) => {
                for key in keys {
                    old.set(key.as_str(), new.get(key).unwrap_or_default());
                }
            }
        }
        Ok(())
    }
}
