//! What changed between two readings of the settings file, and what of it a running daemon can take.

use toml::{Table, Value};

use super::RawConfig;

/// Keys, and tables with all that is in them, that take effect without a restart.
const LIVE: [&str; 5] = [
    "pull_modes.soci_v1",
    "pull_modes.soci_v2",
    "snapshotter.min_layer_size",
    "background_fetch.silence_period_msec",
    "resolver.host",
];

/// Keys whose value changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A running daemon takes them.
    pub live: Vec<String>,
    /// They wait for a restart.
    pub later: Vec<String>,
}

/// The difference between what was read first and what is read now.
pub fn changes(old: &RawConfig, new: &RawConfig) -> Changes {
    let mut changes = Changes::default();
    compare(&table(old), &table(new), "", &mut changes);
    changes
}

/// Settings in force after a reload: what is live as it is read now, all else as it was.
pub fn taken(old: &RawConfig, new: &RawConfig) -> RawConfig {
    let mut settings = table(old);
    take(&mut settings, &table(new), "");
    settings.try_into().expect("both were settings")
}

fn table(raw: &RawConfig) -> Table {
    Table::try_from(raw).expect("settings are texts, numbers, lists and tables")
}

fn is_live(path: &str) -> bool {
    let is_below = |rest: &str| rest.is_empty() || rest.starts_with('.');
    LIVE.iter().any(|live| path.strip_prefix(live).is_some_and(is_below))
}

fn take(old: &mut Table, new: &Table, path: &str) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    old.retain(|key, _| new.contains_key(key) || !is_live(&join(key)));
    for (key, value) in new {
        let path = join(key);
        match (old.get_mut(key), value) {
            _ if is_live(&path) => drop(old.insert(key.clone(), value.clone())),
            (Some(Value::Table(old)), Value::Table(new)) => take(old, new, &path),
            _ => {}
        }
    }
}

fn compare(old: &Table, new: &Table, path: &str, changes: &mut Changes) {
    let added = new.keys().filter(|key| !old.contains_key(*key));
    for key in old.keys().chain(added) {
        let (old, new) = (old.get(key), new.get(key));
        if old == new {
            continue;
        }
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let is_live = is_live(&path);
        match (old, new) {
            (Some(Value::Table(old)), Some(Value::Table(new))) => compare(old, new, &path, changes),
            _ if is_live => changes.live.push(path),
            _ => changes.later.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn changes_are_named_by_what_they_need() {
        let raw = |text: &str| Config::parse(text).unwrap().raw;
        let old = raw("mount_timeout_sec = 5");
        assert_eq!(changes(&old, &old), Changes::default());
        let new = raw("mount_timeout_sec = 6\n[pull_modes.soci_v1]\nenable = true\n\
             [snapshotter]\nmin_layer_size = 5\n\
             [[resolver.host.\"r.example\".mirrors]]\nhost = \"https://m.example\"\n");
        let found = changes(&old, &new);
        assert_eq!(
            found.live,
            ["pull_modes.soci_v1.enable", "resolver.host.r.example", "snapshotter.min_layer_size"]
        );
        assert_eq!(found.later, ["mount_timeout_sec"]);
        let now = taken(&old, &new);
        assert!(changes(&now, &new).live.is_empty(), "what is live was taken");
        assert_eq!(changes(&now, &new).later, ["mount_timeout_sec"]);
        let back = changes(&new, &old);
        assert_eq!((back.live.len(), back.later.len()), (3, 1), "{back:?}");
    }
}
