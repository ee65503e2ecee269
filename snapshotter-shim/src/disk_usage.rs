//! Disk that a directory tree takes, as containerd counts it.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::state::Usage;

/// `st_blocks` counts these, whatever the filesystem's block size.
const BLOCK_LEN: u64 = 512;

/// A tree that could not be measured.
#[derive(Debug, thiserror::Error)]
#[error("measuring the disk usage of {}", path.display())]
pub struct UsageError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Allocated blocks and inodes of the tree at `root`, hard links counted once, `root` included.
///
/// Other filesystems mounted inside are not entered. Files that vanish meanwhile don't count.
pub fn disk_usage(root: &Path) -> Result<Usage, UsageError> {
    let mut tally = Tally::default();
    let top = fs::symlink_metadata(root).map_err(|source| fail(root, source))?;
    tally.add(&top);
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        match measure(&directory, top.dev(), &mut tally, &mut open) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.map_err(|source| fail(&directory, source))?,
        }
    }
    Ok(tally.usage)
}

/// Count the entries of one directory, and put its directories on `open`.
fn measure(
    directory: &Path,
    device: u64,
    tally: &mut Tally,
    open: &mut Vec<PathBuf>,
) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if metadata.dev() != device {
            continue;
        }
        tally.add(&metadata);
        if metadata.is_dir() {
            open.push(entry.path());
        }
    }
    Ok(())
}

#[derive(Default)]
struct Tally {
    usage: Usage,
    /// Inodes that may come again under another name.
    linked: HashSet<u64>,
}

impl Tally {
    fn add(&mut self, metadata: &Metadata) {
        let many_names = metadata.nlink() > 1 && !metadata.is_dir();
        if many_names && !self.linked.insert(metadata.ino()) {
            return;
        }
        self.usage.bytes += metadata.blocks() * BLOCK_LEN;
        self.usage.inodes += 1;
    }
}

fn fail(path: &Path, source: io::Error) -> UsageError {
    UsageError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_once_and_holes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/data"), vec![1; 100_000]).unwrap();
        fs::hard_link(path("d/data"), path("again")).unwrap();
        fs::File::create(path("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", path("link")).unwrap();
        fs::File::open(path("d/data")).unwrap().sync_all().unwrap();
        let usage = disk_usage(root.path()).unwrap();
        assert_eq!(usage.inodes, 5, "the root, d, data, hole, link");
        assert!((100_000..1_000_000).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn a_missing_tree_is_an_error() {
        assert!(disk_usage(Path::new("/nonexistent/tree")).is_err());
    }
}
