use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use spanfs_cache::{Content, ReadError, ReadReply};
use spanfs_layer::tree::{TreeBuilder, TreeOptions};
use spanfs_layer::{Kind, Record, Time};

use super::*;

/// A layer made of whole files and symlinks.
#[derive(Default)]
struct Maker {
    bytes: Vec<u8>,
    records: Vec<Record>,
    places: BTreeMap<u64, String>,
}

impl Maker {
    fn add(&mut self, name: &str, kind: Kind, link: &str, content: &[u8]) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512) + 512, 0);
        let data = self.bytes.len() as u64;
        self.bytes.extend_from_slice(content);
        self.places.insert(data, format!("/{name}"));
        self.records.push(Record {
            name: name.into(),
            kind,
            typeflag: b'0',
            link: link.into(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            uname: Vec::new(),
            gname: Vec::new(),
            mtime: Time::default(),
            devmajor: 0,
            devminor: 0,
            pax: Vec::new(),
            header: UncompressedOffset(data - 512),
            data: UncompressedOffset(data),
            size: content.len() as u64,
            sparse: None,
        });
        self
    }

    fn file(&mut self, name: &str, content: impl AsRef<[u8]>) -> &mut Self {
        self.add(name, Kind::Regular, "", content.as_ref())
    }

    fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.add(name, Kind::Symlink, target, b"")
    }

    fn host_file(&mut self, path: &str) -> &mut Self {
        let content = std::fs::read(path).unwrap();
        self.file(path.trim_start_matches('/'), content)
    }

    fn tree(&self) -> Arc<Tree> {
        let mut builder = TreeBuilder::new(TreeOptions::default());
        for record in &self.records {
            builder.push(record).unwrap();
        }
        Arc::new(builder.finish().unwrap())
    }

    /// Paths in the order in which they are wanted.
    fn wanted(&self, config: StartConfig, options: StartSetOptions) -> Vec<String> {
        let mut set = StartSet::new(self.tree(), config, options);
        let mut wanted = Vec::new();
        let mut asked = 0;
        loop {
            while let Some(range) = set.poll_wanted() {
                wanted.push(self.places[&range.range.start.0].clone());
            }
            let Some(need) = set.poll_need() else { break };
            let range = need.range.start.0 as usize..need.range.end.0 as usize;
            asked += range.len() as u64;
            set.handle_bytes(&need, self.bytes[range].to_vec());
        }
        assert!(set.is_done());
        assert!(asked <= options.needs_bytes_max);
        wanted
    }
}

fn command(words: &[&str]) -> StartConfig {
    StartConfig {
        entrypoint: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        workdir: b"/work".to_vec(),
        ..StartConfig::default()
    }
}

fn check(maker: &Maker, config: StartConfig, expected: &[&str]) {
    assert_eq!(maker.wanted(config, StartSetOptions::default()), expected);
}

#[test]
fn programs_are_found_as_the_shell_finds_them() {
    let mut maker = Maker::default();
    maker
        .file("usr/bin/tool", "\0binary")
        .symlink("bin", "usr/bin")
        .symlink("work/here", "../usr/bin/../bin/tool")
        .symlink("loop", "loop")
        .file("opt/x/tool", "\0other")
        .file("work/data.txt", "data");
    check(&maker, command(&["tool"]), &["/usr/bin/tool"]);
    check(&maker, command(&["/bin/tool", "data.txt", "-x"]), &["/usr/bin/tool", "/work/data.txt"]);
    check(&maker, command(&["./here"]), &["/usr/bin/tool"]);
    check(&maker, command(&["/loop", "missing"]), &[]);
    let mut config = command(&["tool"]);
    config.env = vec![b"PATH=/nowhere:/opt/x:/bin".to_vec()];
    check(&maker, config, &["/opt/x/tool"]);
    check(&maker, command(&["sh", "-c", "exec tool --flag; true"]), &["/usr/bin/tool"]);
    check(&maker, StartConfig::default(), &[]);
}

#[test]
fn users_and_groups_come_before_the_program() {
    let mut maker = Maker::default();
    maker.file("bin/tool", "\0").file("etc/group", "g").file("etc/passwd", "p");
    check(&maker, command(&["/bin/tool"]), &["/etc/passwd", "/etc/group", "/bin/tool"]);
}

#[test]
fn scripts_lead_to_their_interpreters() {
    let mut maker = Maker::default();
    maker
        .file("entry.sh", "#! /bin/env -S A=1 shell -e\nexec \"$@\"\n")
        .file("bin/env", "\0")
        .file("bin/shell", "#!/bin/deeper")
        .file("bin/deeper", "\0")
        .file("bin/server", "\0");
    let mut config = command(&["/entry.sh"]);
    config.cmd = vec![b"server".to_vec()];
    let expected = ["/entry.sh", "/bin/server", "/bin/env", "/bin/shell", "/bin/deeper"];
    check(&maker, config, &expected);
}

#[test]
fn python_brings_its_library_the_heart_of_it_first() {
    let mut maker = Maker::default();
    maker
        .symlink("usr/bin/python3", "python3.11")
        .file("usr/bin/python3.11", "\0")
        .file("usr/lib/python3.11/zipfile.py", "z")
        .file("usr/lib/python3.11/os.py", "o")
        .file("usr/lib/python3.11/__pycache__/os.cpython-311.pyc", "p")
        .file("usr/lib/python3.11/encodings/utf_8.py", "u")
        .file("usr/lib/python3.11/test/test_os.py", "t")
        .file("usr/lib/python3.11/site-packages/big.py", "b")
        .file("work/app.py", "a");
    let found = maker.wanted(command(&["python3", "app.py"]), StartSetOptions::default());
    assert_eq!(found[0], "/usr/bin/python3.11");
    assert_eq!(found[1], "/usr/lib/python3.11/encodings/utf_8.py");
    let mut urgent = found[2..4].to_vec();
    urgent.sort();
    let os = ["/usr/lib/python3.11/__pycache__/os.cpython-311.pyc", "/usr/lib/python3.11/os.py"];
    assert_eq!(urgent, os);
    assert_eq!(found[4..], ["/usr/lib/python3.11/zipfile.py", "/work/app.py"]);
}

/// Files that the host's loader says a program needs, symlinks resolved.
fn ldd(program: &str) -> Option<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Some(paths.map(str::to_owned).collect())
}

#[test]
fn a_real_programs_libraries_are_those_that_the_loader_finds() {
    let mut tried = 0;
    for program in ["/bin/bash", "/usr/bin/git", "/usr/bin/curl"] {
        let Ok(real) = std::fs::canonicalize(program) else { continue };
        let Some(libraries) = ldd(program) else { continue };
        let mut maker = Maker::default();
        maker.host_file(real.to_str().unwrap()).file("usr/lib/libunused.so.1", "\x7fELF");
        if real.to_str() != Some(program) {
            maker.symlink(program.trim_start_matches('/'), real.to_str().unwrap());
        }
        if std::path::Path::new("/etc/ld.so.cache").exists() {
            maker.host_file("/etc/ld.so.cache");
        }
        let mut expected = vec![real.to_str().unwrap().to_owned(), "/etc/ld.so.cache".to_owned()];
        for library in libraries {
            let real = std::fs::canonicalize(&library).unwrap();
            let real = real.to_str().unwrap().to_owned();
            if !expected.contains(&real) {
                maker.host_file(&real);
                if real != library {
                    maker.symlink(library.trim_start_matches('/'), &real);
                }
                expected.push(real);
            }
        }
        let mut found = maker.wanted(command(&[program]), StartSetOptions::default());
        assert_eq!(found[0], expected[0]);
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{program}");
        tried += 1;
    }
    assert!(tried > 0, "no program to try");
}

#[test]
fn the_limits_hold() {
    let mut maker = Maker::default();
    maker.host_file("/bin/bash");
    for number in 0..50 {
        maker.file(&format!("work/{number}"), vec![1; 1000]);
    }
    let words: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    let mut config = command(&["/bin/bash"]);
    config.cmd = words.into_iter().map(String::into_bytes).collect();
    let few = StartSetOptions { files_max: 3, ..StartSetOptions::default() };
    assert_eq!(maker.wanted(config.clone(), few).len(), 3);
    let small = StartSetOptions { bytes_max: 5500, ..StartSetOptions::default() };
    assert_eq!(maker.wanted(config.clone(), small).len(), 5);
    let blind = StartSetOptions { needs_bytes_max: 0, ..StartSetOptions::default() };
    assert_eq!(maker.wanted(config, blind).len(), 51);
}

proptest! {
    #[test]
    fn damaged_programs_end_in_bounded_time(
        damage in prop::collection::vec((0..6000usize, any::<u8>()), 1..40), cut in 0..200_000usize,
    ) {
        static BASH: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| std::fs::read("/bin/bash").unwrap());
        let mut bytes = BASH.clone();
        for (at, value) in damage {
            // The headers, and as often what lies behind them.
            let at = if value & 1 == 0 { at % 1024 } else { at * 37 };
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut.max(16));
        }
        let mut maker = Maker::default();
        maker.file("bin/x", &bytes).file("etc/ld.so.cache", &bytes[..bytes.len().min(5000)]);
        prop_assert_eq!(&maker.wanted(command(&["/bin/x"]), StartSetOptions::default())[0], "/bin/x");
    }
}

/// Absent until filled, from another thread; or failing.
struct Late {
    bytes: Vec<u8>,
    present: Arc<Mutex<bool>>,
    fails: bool,
}

impl Content for Late {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_present(
        &self,
        offset: UncompressedOffset,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, ReadError> {
        if !*self.present.lock().unwrap() {
            return Ok(None);
        }
        let start = offset.0 as usize;
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        Ok(Some(buffer.len()))
    }

    fn fill(&self, _range: Range<UncompressedOffset>, reply: ReadReply) {
        let (present, fails) = (Arc::clone(&self.present), self.fails);
        std::thread::spawn(move || {
            *present.lock().unwrap() = !fails;
            reply(if fails { Err(ReadError::Unavailable("test".into())) } else { Ok(()) });
        });
    }

    fn complete_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn driven_over_contents_it_finds_what_it_can_see() {
    for (fails, expected) in [(false, 2), (true, 1)] {
        let mut maker = Maker::default();
        maker.file("entry", "#!/bin/shell\n").file("bin/shell", "\0");
        maker.bytes.resize(maker.bytes.len().next_multiple_of(512), 0);
        let set = StartSet::new(maker.tree(), command(&["/entry"]), StartSetOptions::default());
        let content: Arc<dyn Content> =
            Arc::new(Late { bytes: maker.bytes.clone(), present: Arc::default(), fails });
        let mut count = 0;
        drive(set, &[content], Duration::from_secs(20), |_| count += 1);
        assert_eq!(count, expected);
    }
}
