//! `soci convert --standalone` against the peer's conversions: equal blobs, equal words. No containerd.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::golden::SOCI;
use crate::image::layout;

fn soci(arguments: &[&str]) -> Output {
    Command::new(SOCI).env_clear().args(arguments).output().unwrap()
}

/// All files of a layout: path and content.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => {
                    let name = path.strip_prefix(root).unwrap().to_owned();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    found
}

/// Lines without order, as layers are built side by side; what is known already depends on who was first.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|it| it.replace(" (already exists)", "")).collect();
    lines.sort();
    lines
}

#[test]
fn conversions_are_those_of_the_peer() {
    let recordings = std::fs::read_dir(layout("")).unwrap().map(|entry| entry.unwrap().path());
    let recordings: Vec<_> = recordings
        .filter(|path| path.to_str().unwrap().ends_with(".convert.txt"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    assert!(recordings.len() > 7, "{recordings:?}");
    for recording in recordings {
        let (command, said) = recording.split_once('\n').unwrap();
        let (said, exit) = said.trim_end().rsplit_once("\nexit ").unwrap();
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let [options @ .., input, output] = words.as_slice() else { panic!("{command}") };
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (layout(input), scratch.path().join("new"));
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        let found = soci(&[options, &[from, to]].concat());
        let text = String::from_utf8([found.stdout, found.stderr].concat()).unwrap();
        assert_eq!(lines(&text), lines(said), "{command}");
        assert_eq!(found.status.code().unwrap().to_string(), exit, "{command}");
        let left: Vec<_> =
            scratch.path().read_dir().unwrap().map(|it| it.unwrap().path()).collect();
        if exit != "0" {
            assert!(left.is_empty(), "{command}: {left:?}");
            continue;
        }
        assert_eq!(left, [Path::new(to)], "{command}");
        let (ours, theirs) = (files(Path::new(to)), files(&layout(output)));
        for (name, bytes) in &theirs {
            match ours.get(name) {
                Some(found) => assert!(found == bytes, "{command}: {} differs", name.display()),
                // Converting twice leaves an index there that nothing names.
                None => {
                    let hex = name.file_name().unwrap().to_str().unwrap().as_bytes();
                    let names = |bytes: &Vec<u8>| bytes.windows(hex.len()).any(|it| it == hex);
                    assert!(!theirs.values().any(names), "{command}: no {}", name.display());
                }
            }
        }
        let more: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).collect();
        assert!(more.is_empty(), "{command}: {more:?}");
    }
}

/// An archive in, an archive out, is the same image; twice gives the same bytes.
#[test]
fn archives_are_layouts_in_a_tar() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let mut tar = tar::Builder::new(std::fs::File::create(path("plain.tar")).unwrap());
    tar.append_dir_all(".", layout("plain")).unwrap();
    tar.finish().unwrap();
    let build = ["convert", "--standalone", "--min-layer-size", "0", "--span-size", "65536"];
    for to in ["one.tar", "two.tar"] {
        let output = soci(&[&build[..], &[&path("plain.tar"), &path(to)]].concat());
        assert!(output.status.success(), "{output:?}");
    }
    let bytes = std::fs::read(path("one.tar")).unwrap();
    assert!(bytes == std::fs::read(path("two.tar")).unwrap());
    tar::Archive::new(bytes.as_slice()).unpack(path("one")).unwrap();
    let blobs = |files: BTreeMap<PathBuf, Vec<u8>>| {
        files.into_iter().filter(|(name, _)| name.starts_with("blobs")).collect::<BTreeMap<_, _>>()
    };
    assert!(blobs(files(Path::new(&path("one")))) == blobs(files(&layout("v2"))));
}

/// Interrupted while it copies and indexes, it leaves neither an output nor a scratch directory.
#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("in");
    let out = scratch.path().join("out");
    std::fs::create_dir(&out).unwrap();
    crate::image::write_large(&input);
    for (signal, code, wait) in [(Signal::INT, 130, 30), (Signal::TERM, 143, 150)] {
        let mut child = Command::new(SOCI)
            .args(["convert", "--standalone", "--min-layer-size", "0"])
            .args([&input, &out.join("new.tar")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while out.read_dir().unwrap().next().is_none() {
            assert!(Instant::now() < deadline, "it does not begin");
        }
        std::thread::sleep(Duration::from_millis(wait));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let start = Instant::now();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "by {signal:?}");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        let left: Vec<_> = out.read_dir().unwrap().map(|it| it.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
