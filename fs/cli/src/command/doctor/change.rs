//! containerd's configuration mended, and given back.
//!
//! Comments and order stay. Beside the file stands `FILE.spanfs`, JSON: its text before and after, and each
//! change. While the file is as we left it, undoing gives the old text back byte by byte; else it takes back
//! those changes that still stand.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value};

use super::containerd::{Config, Fix, Keys, Wanted, find, shown};
use crate::failure::{Code, Failure};

const TRANSFER: &str = "io.containerd.transfer.v1.local";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal {
    /// The file's text before the first change; none if there was no file, or somebody else has changed it
    /// between two of ours.
    before: Option<String>,
    /// There was no file.
    was_absent: bool,
    /// The file's text after the last change.
    after: String,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    /// A key, the value that it got, and the one that it had.
    Set { keys: Keys, value: String, was: Option<String> },
    /// An entry in the transfer service's list.
    Unpack { snapshotter: String },
}

/// Mend what can be mended; what was done, for people.
pub(super) fn fix(path: &Path, wanted: &Wanted) -> Result<String, Failure> {
    let attempted = format!("mending {}", path.display());
    let refuse = |reason: String| Failure::new(Code::Failed, attempted.clone(), reason);
    let config = Config::read(path).map_err(refuse)?;
    let faults = config.check(wanted);
    let fixes: Vec<Fix> = faults.into_iter().filter_map(|fault| fault.fix).collect();
    if fixes.is_empty() {
        return Ok(format!("{}: nothing to mend", path.display()));
    }
    let text = read(path).map_err(|error| Failure::io(attempted.clone(), &error))?;
    let mut document: DocumentMut =
        text.clone().unwrap_or_default().parse().map_err(|error| refuse(format!("{error}")))?;
    let mut journal = journal(path)?.unwrap_or_default();
    if journal.changes.is_empty() {
        journal = Journal { was_absent: text.is_none(), before: text, ..Journal::default() };
    } else if text.as_ref() != Some(&journal.after) {
        (journal.before, journal.was_absent) = (None, false);
    }
    let count = fixes.len();
    for fix in fixes {
        journal.changes.push(apply(&mut document, fix).map_err(refuse)?);
    }
    journal.after = document.to_string();
    // First how to take it back, then the change.
    let text = serde_json::to_string_pretty(&journal).map_err(|error| refuse(error.to_string()))?;
    let written = replace(&beside(path), &text).and_then(|()| replace(path, &journal.after));
    written.map_err(|error| Failure::io(attempted, &error))?;
    let undo = beside(path);
    Ok(format!("{}: {count} changes; {} knows how to undo them", path.display(), undo.display()))
}

/// Take all changes back; what was done, for people.
pub(super) fn undo(path: &Path) -> Result<String, Failure> {
    let attempted = format!("taking back the changes of {}", path.display());
    let failed = |error: &io::Error| Failure::io(attempted.clone(), error);
    let Some(journal) = journal(path)? else {
        return Ok(format!("{}: nothing was changed", path.display()));
    };
    let text = read(path).map_err(|error| failed(&error))?;
    let done = match (text, &journal) {
        (Some(text), Journal { after, was_absent: true, .. }) if text == *after => {
            fs::remove_file(path)
        }
        (Some(text), Journal { after, before: Some(before), .. }) if text == *after => {
            replace(path, before)
        }
        (None, _) => Ok(()),
        (Some(text), _) => {
            let mut document: DocumentMut = text.parse().map_err(|error| {
                Failure::new(Code::Failed, attempted.clone(), format!("{error}"))
            })?;
            journal.changes.iter().rev().for_each(|change| take_back(&mut document, change));
            replace(path, &document.to_string())
        }
    };
    done.and_then(|()| fs::remove_file(beside(path))).map_err(|error| failed(&error))?;
    Ok(format!("{}: changes taken back", path.display()))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".spanfs");
    name.into()
}

fn journal(path: &Path) -> Result<Option<Journal>, Failure> {
    let path = beside(path);
    let attempted = || format!("reading {}", path.display());
    match read(&path).map_err(|error| Failure::io(attempted(), &error))? {
        None => Ok(None),
        Some(text) => match serde_json::from_str(&text) {
            Ok(journal) => Ok(Some(journal)),
            Err(error) => Err(Failure::caused(Code::Corrupt, attempted(), &error)),
        },
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whole or not at all, with the rights that the file had.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let file = tempfile::NamedTempFile::new_in(parent)?;
    fs::write(file.path(), text)?;
    match fs::metadata(path) {
        Ok(meta) => file.as_file().set_permissions(meta.permissions())?,
        Err(_) => {
            file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?
        }
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn apply(document: &mut DocumentMut, fix: Fix) -> Result<Change, String> {
    match fix {
        Fix::Set(keys, value) => {
            let names: Vec<&str> = keys.iter().map(String::as_str).collect();
            let old = find(document, &names).and_then(Item::as_value).cloned();
            let Some((key, tables)) = keys.split_last() else {
                return Err("a change without a key".to_owned());
            };
            let (was, value) = (old.as_ref().map(bare), like(value, old.as_ref()));
            let text = bare(&value);
            table(document, tables)?.insert(key, Item::Value(value));
            Ok(Change::Set { keys, value: text, was })
        }
        Fix::Unpack(snapshotter) => {
            let tables = ["plugins", TRANSFER].map(str::to_owned);
            let entry = [("platform", "linux"), ("snapshotter", snapshotter.as_str())];
            let list = table(document, &tables)?
                .entry("unpack_config")
                .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
            match list {
                Item::ArrayOfTables(list) => {
                    let mut table = Table::new();
                    entry.into_iter().for_each(|(key, text)| {
                        table.insert(key, toml_edit::value(text));
                    });
                    list.push(table);
                }
                Item::Value(Value::Array(list)) => {
                    list.push(entry.into_iter().collect::<toml_edit::InlineTable>());
                }
                _ => return Err("unpack_config is no list".to_owned()),
            }
            Ok(Change::Unpack { snapshotter })
        }
    }
}

/// A value without the space and the comment around it.
fn bare(value: &Value) -> String {
    value.clone().decorated("", "").to_string()
}

/// A value with the comment of the one in whose place it comes.
fn like(mut value: Value, old: Option<&Value>) -> Value {
    if let Some(old) = old {
        *value.decor_mut() = old.decor().clone();
    }
    value
}

/// The table of some keys, made where it is not there.
fn table<'d>(
    document: &'d mut DocumentMut,
    keys: &[String],
) -> Result<&'d mut dyn toml_edit::TableLike, String> {
    let mut item = document.as_item_mut();
    for (depth, key) in keys.iter().enumerate() {
        let here = item.as_table_like_mut();
        let here = here.ok_or_else(|| format!("{} is no table", shown(&keys[..depth])))?;
        item = here.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            // [a.b.c] says that there is a.b.
            table.set_implicit(depth + 1 < keys.len());
            Item::Table(table)
        });
    }
    item.as_table_like_mut().ok_or_else(|| format!("{} is no table", shown(keys)))
}

/// Take one change back, if it still stands. Tables that get empty by it go, too.
fn take_back(document: &mut DocumentMut, change: &Change) {
    match change {
        Change::Set { keys, value, was } => {
            let names: Vec<&str> = keys.iter().map(String::as_str).collect();
            let now = find(document, &names).and_then(Item::as_value).cloned();
            let stands = now.as_ref().is_some_and(|now| bare(now) == *value);
            let Some((key, tables)) = keys.split_last().filter(|_| stands) else { return };
            let old = was.as_ref().and_then(|text| text.parse::<Value>().ok());
            if let Ok(table) = table(document, tables) {
                match old {
                    Some(old) => drop(table.insert(key, Item::Value(like(old, now.as_ref())))),
                    None => drop(table.remove(key)),
                }
            }
            prune(document.as_table_mut(), tables);
        }
        Change::Unpack { snapshotter } => {
            let keys = ["plugins", TRANSFER, "unpack_config"].map(str::to_owned);
            let names = |table: &dyn toml_edit::TableLike| {
                table.get("snapshotter").and_then(Item::as_str) == Some(snapshotter)
            };
            let Ok(table) = table(document, &keys[..2]) else { return };
            match table.get_mut("unpack_config") {
                Some(Item::ArrayOfTables(list)) => list.retain(|table| !names(table)),
                Some(Item::Value(Value::Array(list))) => {
                    list.retain(|it| !it.as_inline_table().is_some_and(|table| names(table)));
                }
                _ => {}
            }
            prune(document.as_table_mut(), &keys);
        }
    }
}

/// Remove what is empty along `keys`, the innermost first.
fn prune(table: &mut dyn toml_edit::TableLike, keys: &[String]) {
    let Some((key, rest)) = keys.split_first() else { return };
    let is_empty = match table.get_mut(key) {
        Some(Item::ArrayOfTables(list)) => list.is_empty(),
        Some(Item::Value(Value::Array(list))) => list.is_empty(),
        Some(item) => match item.as_table_like_mut() {
            Some(inner) => {
                prune(inner, rest);
                inner.is_empty()
            }
            None => false,
        },
        None => false,
    };
    if is_empty {
        table.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(release: &str) -> Wanted {
        Wanted {
            snapshotter: "soci".to_owned(),
            socket: "/run/soci.sock".into(),
            root: "/var/lib/soci".into(),
            release: Some(release.parse().unwrap()),
        }
    }

    const OLD: &str = "# ours\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  \
         snapshotter = \"overlayfs\" # until today\n";

    #[test]
    fn mended_once_and_given_back() {
        for (release, text) in
            [("1.7", Some(OLD)), ("2.3", Some("version = 3\n")), ("2.3", None), ("1.6", None)]
        {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("containerd/config.toml");
            if let Some(text) = text {
                replace(&path, text).unwrap();
            }
            let said = fix(&path, &wanted(release)).unwrap();
            assert!(said.contains("changes"), "{said}");
            let faults = Config::read(&path).unwrap().check(&wanted(release));
            assert!(faults.is_empty(), "{faults:?}");
            let mended = read(&path).unwrap().unwrap();
            assert!(text != Some(OLD) || mended.contains("# ours"), "{mended}");
            assert!(fix(&path, &wanted(release)).unwrap().contains("nothing to mend"));
            assert_eq!(read(&path).unwrap().unwrap(), mended);
            undo(&path).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), text);
            assert!(undo(&path).unwrap().contains("nothing was changed"));
        }
    }

    #[test]
    fn what_others_changed_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        replace(&path, OLD).unwrap();
        fix(&path, &wanted("1.7")).unwrap();
        let mut text = read(&path).unwrap().unwrap();
        text += "\n[debug]\n  level = \"debug\"\n";
        replace(&path, &text).unwrap();
        // A second change of ours does not forget the first.
        let moved = Wanted { socket: "/run/other.sock".into(), ..wanted("1.7") };
        fix(&path, &moved).unwrap();
        assert!(Config::read(&path).unwrap().check(&moved).is_empty());
        undo(&path).unwrap();
        let left = read(&path).unwrap().unwrap();
        assert!(left.contains("level = \"debug\"") && left.contains("# ours"), "{left}");
        assert!(!left.contains("soci") && left.contains("\"overlayfs\" # until today"), "{left}");
    }
}
