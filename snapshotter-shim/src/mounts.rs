//! The mounts that containerd gets for a snapshot: one, a bind or an overlay.
//!
//! The shape is relied upon: containerd's applier writes straight into `upperdir` of a single overlay
//! mount, and BuildKit and Docker read the directories out of the options.

use std::path::{Path, PathBuf};

use crate::directories::Directories;
use crate::state::{Kind, Snapshot};

/// How to mount something, in the terms of mount(8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Type of filesystem, or `bind`.
    pub fs_type: &'static str,
    /// Directory of a bind mount.
    pub source: String,
    /// In this order.
    pub options: Vec<String>,
}

/// The mount of an active snapshot or a view.
///
/// `lowers` are where its parents are shown, nearest first; `extra` goes to the end of overlay options.
pub fn mount(
    directories: &Directories,
    snapshot: &Snapshot,
    lowers: &[PathBuf],
    extra: &[String],
) -> Mount {
    let access = match snapshot.kind {
        Kind::Active => "rw",
        Kind::View => "ro",
        Kind::Committed => panic!("a committed snapshot is not mounted itself"),
    };
    let bind = |content: &Path| {
        let options = vec![access.to_owned(), "rbind".to_owned()];
        Mount { fs_type: "bind", source: text(content), options }
    };
    match (snapshot.kind, lowers) {
        (_, []) => bind(&directories.fs(snapshot.id)),
        (Kind::View, [parent]) => bind(parent),
        _ => overlay(directories, snapshot, lowers, extra),
    }
}

fn overlay(
    directories: &Directories,
    snapshot: &Snapshot,
    lowers: &[PathBuf],
    extra: &[String],
) -> Mount {
    let mut options = Vec::new();
    if snapshot.kind == Kind::Active {
        options.push(format!("workdir={}", text(&directories.work(snapshot.id))));
        options.push(format!("upperdir={}", text(&directories.fs(snapshot.id))));
    }
    let lower: Vec<_> = lowers.iter().map(|lower| text(lower)).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend_from_slice(extra);
    Mount { fs_type: "overlay", source: "overlay".to_owned(), options }
}

/// The root was refused at start if it can't be written in mount options.
fn text(path: &Path) -> String {
    path.to_str().expect("the root is text, and what follows too").to_owned()
}

/// Whether a path can be written in the options of an overlay mount as it is.
pub fn can_be_option(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains([':', ',', '\\', '"', '\n']))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::state::{Labels, Listed, Usage};

    #[test]
    fn shapes() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::open(root.path()).unwrap();
        let at = directories.path().to_str().unwrap();
        let check = |kind, parents: &[u64], fs_type: &str, source: &str, options: &[&str]| {
            let now = SystemTime::UNIX_EPOCH;
            let snapshot = Snapshot {
                name: "default/3/with:colon,comma".into(),
                id: 9,
                kind,
                parent: String::new(),
                labels: Labels::default(),
                created: now,
                updated: now,
                usage: Usage::default(),
                listed: Listed::default(),
            };
            let lowers: Vec<_> = parents.iter().map(|&parent| directories.fs(parent)).collect();
            let found = mount(&directories, &snapshot, &lowers, &["index=off".to_owned()]);
            let options: Vec<_> = options.iter().map(|option| option.replace('@', at)).collect();
            assert_eq!(found.fs_type, fs_type);
            assert_eq!(found.source, source.replace('@', at));
            assert_eq!(found.options, options);
        };
        check(Kind::Active, &[], "bind", "@/9/fs", &["rw", "rbind"]);
        check(Kind::View, &[], "bind", "@/9/fs", &["ro", "rbind"]);
        check(Kind::View, &[4], "bind", "@/4/fs", &["ro", "rbind"]);
        check(Kind::View, &[4, 2], "overlay", "overlay", &["lowerdir=@/4/fs:@/2/fs", "index=off"]);
        let options =
            ["workdir=@/9/work", "upperdir=@/9/fs", "lowerdir=@/4/fs:@/2/fs", "index=off"];
        check(Kind::Active, &[4, 2], "overlay", "overlay", &options);
    }

    #[test]
    fn roots_that_options_cannot_carry() {
        for (path, can) in
            [("/var/lib/x y", true), ("/a:b", false), ("/a,b", false), ("/\\", false)]
        {
            assert_eq!(can_be_option(Path::new(path)), can, "{path}");
        }
    }
}
