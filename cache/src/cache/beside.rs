//! Files beside the layers: zTOCs, layer indexes, traces. Each can be had or made again, so that the
//! quota may take those that nobody has used for longest.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where they are, below the root.
const DIRECTORIES: [&str; 3] = ["ztocs", "indexes", "traces"];
/// Directories in these directories, and no deeper.
const DEPTH_MAX: usize = 2;
/// What was just made or used is about to be opened by its name.
const IN_USE: Duration = Duration::from_secs(60);

/// Files of one name whose endings differ: an index and its note go together.
#[derive(Debug)]
pub(crate) struct Beside {
    paths: Vec<PathBuf>,
    pub(crate) bytes: u64,
    /// The latest change of any of them; who uses one touches it.
    pub(crate) last_used: SystemTime,
}

/// All of them.
pub(crate) fn find(root: &Path) -> Vec<Beside> {
    let mut found = HashMap::new();
    DIRECTORIES.iter().for_each(|name| add(&root.join(name), DEPTH_MAX, &mut found));
    found.into_values().collect()
}

fn add(directory: &Path, depth: usize, found: &mut HashMap<PathBuf, Beside>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Whoever removes it at this moment is welcome to.
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        if metadata.is_dir() {
            if depth > 1 {
                add(&path, depth - 1, found);
            }
            continue;
        }
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let group = found.entry(path.with_extension("")).or_insert_with(|| Beside {
            paths: Vec::new(),
            bytes: 0,
            last_used: used,
        });
        group.paths.push(path);
        group.bytes += metadata.blocks() * 512;
        group.last_used = group.last_used.max(used);
    }
}

impl Beside {
    /// Remove them, unless they are in use; true if they are gone.
    pub(crate) fn remove(&self) -> bool {
        let age = SystemTime::now().duration_since(self.last_used).unwrap_or_default();
        age >= IN_USE
            && self.paths.iter().all(|path| match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "file of the cache not evicted");
                    false
                }
                _ => true,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn files_of_a_name_go_together_unless_just_used() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, len: usize, age: u64| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![1; len]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
            path
        };
        let index = put("indexes/a", 100_000, 5000);
        let note = put("indexes/a.json", 10, 5000);
        let fresh = put("indexes/b", 10, 5000);
        let used = put("indexes/b.json", 10, 1);
        let deep = put("ztocs/of-layer/c", 10, 100);
        put("layers/sha256/d", 10, 5000);
        let found = find(root.path());
        assert_eq!(found.len(), 3);
        assert!(found.iter().any(|it| it.bytes > 100_000 && it.paths.len() == 2));
        assert_eq!(found.iter().filter(|it| it.remove()).count(), 2);
        assert!(!index.exists() && !note.exists() && !deep.exists());
        assert!(fresh.exists() && used.exists());
    }
}
