//! Programs that decompress: right ones, and all that can be wrong with one.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const SHORT: Duration = Duration::from_millis(500);
/// For a machine where many tests run at once.
const LONG: Duration = Duration::from_secs(60);

/// A script as the program. It stands where nobody can read it.
struct Script(tempfile::TempDir);

impl Script {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), mode.clone()).unwrap();
        let path = directory.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, mode).unwrap();
        Self(directory)
    }

    fn program(&self, patience: Duration) -> Program {
        Program { path: self.0.path().join("program"), args: Vec::new(), patience }
    }
}

fn gzip() -> Program {
    let args = vec!["-d".to_owned(), "-c".to_owned()];
    Program { path: "/bin/gzip".into(), args, patience: Duration::from_secs(20) }
}

/// A layer's tar and its blob.
fn layer(seed: u64, len: usize) -> (Vec<u8>, Arc<TestBlob>) {
    let tar = tar_of(seed, len);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    (tar, TestBlob::new(encoder.finish().unwrap()))
}

fn get(
    root: &Path,
    program: &Program,
    blob: &Arc<TestBlob>,
    diff_id: Option<Digest>,
) -> Result<Whole, CacheError> {
    let spec = spec(blob.clone(), diff_id);
    cache(root).whole(WholeSpec { program: Some(program), buffer: Buffer::File, ..spec })
}

#[test]
fn its_output_is_the_layer() {
    let root = tempfile::tempdir().unwrap();
    let (tar, blob) = layer(31, 700_000);
    let whole = get(root.path(), &gzip(), &blob, Some(Digest::of(&tar))).unwrap();
    assert_content(&whole, &tar);
    let WholeToc::Never { reason, .. } = &whole.toc else { panic!("it has a zTOC") };
    assert!(reason.contains("/bin/gzip"), "{reason}");
    assert_eq!(records(&whole).len(), 1);
}

#[test]
fn it_runs_as_nobody_with_nothing_of_ours() {
    let root = tempfile::tempdir().unwrap();
    let (tar, blob) = layer(32, 50_000);
    let script = Script::new(
        "test -z \"$HOME$CARGO\" || { echo environment >&2; exit 3; }\n\
         test \"$(pwd)\" = / || { echo directory >&2; exit 3; }\n\
         grep -q 'NoNewPrivs:.1' /proc/self/status || { echo privileges >&2; exit 3; }\n\
         if test \"$(id -u)\" = 0; then echo root >&2; exit 3; fi\n\
         exec gzip -d -c",
    );
    let whole = get(root.path(), &script.program(LONG), &blob, Some(Digest::of(&tar)));
    assert_content(&whole.unwrap_or_else(|error| panic!("{error}")), &tar);
}

#[track_caller]
fn check_failure(patience: Duration, script: &str, expected: &[&str]) {
    let root = tempfile::tempdir().unwrap();
    let (tar, blob) = layer(33, 700_000);
    let script = Script::new(script);
    let (started, program) = (Instant::now(), script.program(patience));
    let error = get(root.path(), &program, &blob, Some(Digest::of(&tar))).err().unwrap();
    assert!(matches!(error, CacheError::Decompressor { .. }), "{error}");
    let text = error.to_string();
    assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_nothing_left(root.path());
}

#[test]
fn one_that_dies_is_told_with_its_words() {
    check_failure(LONG, "echo out of luck >&2; exit 7", &["exit status: 7", "out of luck"]);
    check_failure(LONG, "head -c 1000 >/dev/null; kill -9 $$", &["signal: 9", "said nothing"]);
}

#[test]
fn one_that_hangs_is_ended_with_its_children() {
    check_failure(SHORT, "exec sleep 1000", &["made no progress for 500ms"]);
    check_failure(SHORT, "cat >/dev/null; sleep 1000", &["made no progress"]);
    check_failure(SHORT, "gzip -d -c; exec >&-; sleep 1000", &["made no progress"]);
}

#[test]
fn one_that_prints_garbage_is_found_out() {
    check_failure(LONG, "cat >/dev/null; echo garbage", &["its output is no layer"]);
    check_failure(LONG, "gzip -d -c | head -c 400000", &["its output is no layer"]);
    check_failure(
        LONG,
        "gzip -d -c; head -c 512 /dev/zero",
        &["its output has digest", "expected"],
    );
    check_failure(LONG, "cat", &["its output"]);
    check_failure(LONG, "gzip -d -c; echo x >/dev/full; exit 1", &["exit status: 1"]);
}

#[test]
fn one_that_is_not_there_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (_, blob) = layer(34, 10_000);
    let program = Program { path: "/nowhere/unpigz".into(), ..gzip() };
    let text = get(root.path(), &program, &blob, None).err().unwrap().to_string();
    assert!(text.contains("/nowhere/unpigz: cannot be started"), "{text}");
}

#[test]
fn a_wrong_blob_is_no_fault_of_the_program() {
    let root = tempfile::tempdir().unwrap();
    let (tar, blob) = layer(35, 100_000);
    let wrong: Arc<dyn Blob> = Arc::new(Renamed(blob, Digest::of(b"wrong")));
    let spec = spec(wrong, Some(Digest::of(&tar)));
    let program = gzip();
    let whole = cache(root.path()).whole(WholeSpec { program: Some(&program), ..spec });
    let error = whole.err().unwrap();
    assert!(matches!(error, CacheError::Condemned { .. }), "{error}");
}

#[test]
fn a_stop_ends_it_too() {
    let root = tempfile::tempdir().unwrap();
    let (_, blob) = layer(36, 100_000);
    let script = Script::new("exec sleep 1000");
    let program = script.program(LONG);
    let (stop, cache) = (AtomicBool::new(false), cache(root.path()));
    std::thread::scope(|scope| {
        let getting = scope.spawn(|| {
            let spec = WholeSpec { stop: &stop, ..spec(blob.clone(), None) };
            cache.whole(WholeSpec { program: Some(&program), ..spec }).err().unwrap()
        });
        wait_until("the first chunks", || blob.wants() > 0);
        std::thread::sleep(Duration::from_millis(100));
        let stopped = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let error = getting.join().unwrap();
        assert!(matches!(error, CacheError::Stopped { .. }), "{error}");
        assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    });
}
