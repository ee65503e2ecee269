//! Random operations on a mount and on a plain model, compared.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::conformance::{PATIENCE, mount, mounter, roads};
use crate::layers::{Maker, Seen};
use crate::scratch::{Scratch, may_mount};
use crate::snapshot;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// A tree of its own for each seed.
fn generate(random: &mut Random) -> Maker {
    let mut maker = Maker::default();
    let mut directories = vec![String::new()];
    let mut files: Vec<String> = Vec::new();
    for number in 0..300 {
        let parent = &directories[random.below(directories.len() as u64) as usize];
        let path = format!("{parent}{:x}-{number}", random.below(1 << 30));
        match random.below(10) {
            0 if parent.len() < 2000 => {
                maker.directory(&path, 0o700 | random.below(0o100) as u32);
                directories.push(format!("{path}/"));
            }
            1 => drop(maker.symlink(&path, &"t/".repeat(1 + random.below(400) as usize))),
            2 if !files.is_empty() => {
                let target = files[random.below(files.len() as u64) as usize].clone();
                maker.hardlink(&path, &target);
            }
            3 => {
                let value = vec![number as u8; random.below(2000) as usize];
                maker.file_with(&path, 0o644, vec![1; number], &[("user.value", &value)]);
                files.push(path);
            }
            _ => {
                let len = 1 << random.below(19);
                maker.file(
                    &path,
                    0o644,
                    crate::content::noise(random.below(len) as usize, 1 + number as u64),
                );
                files.push(path);
            }
        }
    }
    maker
}

fn compare(at: &Path, path: &str, expected: &Seen, maker: &Maker, random: &mut Random) {
    let full = at.join(path);
    match random.below(5) {
        0 => {
            let found = full.symlink_metadata().unwrap();
            assert_eq!(found.mode(), expected.mode, "{path}");
            assert_eq!(found.nlink(), expected.nlink, "{path}");
            assert_eq!((found.mtime(), found.mtime_nsec()), expected.mtime, "{path}");
        }
        1 => assert_eq!(snapshot::xattrs(&full), expected.xattrs, "{path}"),
        2 => {
            let missing = full.with_file_name("never there").symlink_metadata();
            assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
        }
        _ if expected.mode & 0o170_000 == 0o40_000 => {
            let mut found: Vec<String> = std::fs::read_dir(&full)
                .unwrap()
                .map(|entry| format!("{path}/{}", entry.unwrap().file_name().to_str().unwrap()))
                .collect();
            found.sort();
            let is_child =
                |name: &&String| name.rsplit_once('/').is_some_and(|(parent, _)| parent == path);
            let wanted: Vec<String> = maker.model.keys().filter(is_child).cloned().collect();
            assert_eq!(found, wanted);
        }
        _ if expected.mode & 0o170_000 == 0o100_000 => {
            let len = expected.content.len() as u64;
            let offset = random.below(len + 5000);
            let mut buffer = vec![0; 1 + random.below(200_000) as usize];
            let mut read = 0;
            let file = std::fs::File::open(&full).unwrap();
            while let count @ 1.. = file.read_at(&mut buffer[read..], offset + read as u64).unwrap()
            {
                read += count;
            }
            let start = offset.min(len) as usize;
            let end = (start + buffer.len()).min(len as usize);
            assert!(buffer[..read] == expected.content[start..end], "{path} at {offset}");
        }
        _ => {
            let link = std::fs::read_link(&full).unwrap();
            assert_eq!(link.to_str().unwrap().as_bytes(), expected.link);
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    if !may_mount("model") {
        return;
    }
    for seed in [0x5eed_0001, 0xdead_beef] {
        for road in roads() {
            eprintln!("seed {seed:#x}, {road:?}");
            let random = &mut Random(seed);
            let maker = generate(random);
            let scratch = Scratch::new();
            let mounter = mounter(&scratch, road);
            let at = scratch.directory("at");
            let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
            let paths: Vec<&String> = maker.model.keys().collect();
            for _ in 0..3000 {
                let path = paths[random.below(paths.len() as u64) as usize];
                compare(&at, path, &maker.model[path], &maker, random);
            }
            assert_eq!(
                mount.unmount(PATIENCE, spanfs_mount::Busy::Leave).unwrap(),
                spanfs_mount::Ended::Gone
            );
        }
    }
}
