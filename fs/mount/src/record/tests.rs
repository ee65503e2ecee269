use std::path::Path;

use super::*;

fn odd_places() -> Places {
    let odd = std::ffi::OsString::from_vec(b"/a b\n\\\xff\t".to_vec());
    Places { mount_point: odd.into(), staging: "/not/there".into() }
}

fn write(directory: &Path) -> Record {
    Record::write(directory, &odd_places()).unwrap()
}

#[test]
fn a_living_record_is_left_and_an_orphan_is_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    let record = write(directory.path());
    assert!(recover(directory.path(), Privilege::Root).unwrap().is_empty());
    let text = std::fs::read(&record.path).unwrap();
    assert_eq!(parse(&text).unwrap().places, odd_places());
    drop(record);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    std::fs::write(directory.path().join("1-2.mount"), &text).unwrap();
    let recovered = recover(directory.path(), Privilege::Root).unwrap();
    assert_eq!(recovered.len(), 1);
    assert_eq!(recovered[0].mount_point, odd_places().mount_point);
    assert!(recovered[0].outcome.is_ok());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_mount_has_a_record_until_it_ends_whoever_has_the_lock() {
    let directory = tempfile::tempdir().unwrap();
    let (here, place) = (directory.path(), odd_places().mount_point);
    assert_eq!(find(&here.join("never made"), &place).unwrap(), None);
    std::fs::write(here.join("1-1.mount"), "no record\n").unwrap();
    let record = write(here);
    assert_eq!(find(here, &place).unwrap().as_ref(), Some(&record.path));
    assert_eq!(find(here, Path::new("/elsewhere")).unwrap(), None);
    drop(record);
    assert_eq!(find(here, &place).unwrap(), None);
}

#[test]
fn what_happened_is_read_again_also_by_who_has_the_same_open_file() {
    let directory = tempfile::tempdir().unwrap();
    let record = write(directory.path());
    let session = SessionRecord {
        transport: Transport::Dev,
        connection: Connection(57),
        mount_point: "/part 0".into(),
    };
    for line in [
        Line::Session(session.clone()),
        Line::Mounted(Path::new("/part 0")),
        Line::Mounted(&odd_places().mount_point),
        Line::Shown(Shown::ErofsOverFuse, "sha256:12 34"),
        Line::Left(Path::new("/part 0")),
    ] {
        record.note(&line).unwrap();
    }
    assert!(!record.read().unwrap().is_complete);
    record.note(&Line::Complete).unwrap();
    let (name, file) = (record.name().to_owned(), record.file().try_clone().unwrap());
    record.abandon();
    drop(record);
    assert!(orphans(directory.path()).unwrap().is_empty(), "the open file has the lock");
    let resumed = Record::resume(directory.path(), &name, file);
    resumed.claim();
    let expected = Contents {
        places: odd_places(),
        sessions: vec![session],
        mounted: vec![odd_places().mount_point],
        shown: vec![(Shown::ErofsOverFuse, "sha256:12 34".into())],
        is_complete: true,
    };
    assert_eq!(resumed.read().unwrap(), expected);
    assert_eq!(resumed.read().unwrap(), expected, "and once more");
    drop(resumed);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_dead_process_of_our_number_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    let first = write(directory.path());
    let pid = std::process::id();
    let count: u64 = first.name().rsplit('-').next().unwrap().parse().unwrap();
    for next in count + 1..count + 50 {
        std::fs::write(directory.path().join(format!("{pid}-{next}.mount")), "kept").unwrap();
    }
    let second = write(directory.path());
    assert_ne!(second.name(), first.name());
    let kept = std::fs::read_to_string(directory.path().join(format!("{pid}-{}.mount", count + 1)));
    assert_eq!(kept.unwrap(), "kept");
}

/// As released versions wrote them; never to be changed.
const FORMAT_1: &[u8] = b"at /mnt/a\\040b\nstaging /run/spanfs/mounts/parts-17-0\n";
const FORMAT_2: &[u8] = b"format 2\n\
    at /var/lib/x/snapshots/3/fs\n\
    staging /var/lib/x/spanfs/mounts/parts-17-0\n\
    session dev 57 /var/lib/x/spanfs/mounts/parts-17-0/file-0\n\
    mounted /var/lib/x/spanfs/mounts/parts-17-0/file-0\n\
    mounted /var/lib/x/snapshots/3/fs\n\
    shown erofs-over-fuse sha256:00\\0401048576\n\
    complete\n";

#[test]
fn records_of_earlier_formats_are_read() {
    let first = parse(FORMAT_1).unwrap();
    let places =
        Places { mount_point: "/mnt/a b".into(), staging: "/run/spanfs/mounts/parts-17-0".into() };
    assert_eq!(first.places, places);
    assert!(!first.is_complete && first.sessions.is_empty());
    let second = parse(FORMAT_2).unwrap();
    assert!(second.is_complete);
    assert_eq!(second.mounted.len(), 2);
    assert_eq!(second.sessions[0].connection, Connection(57));
    assert_eq!(second.shown, [(Shown::ErofsOverFuse, "sha256:00 1048576".to_owned())]);
}

#[test]
fn a_newer_format_is_refused_with_words() {
    let bad = parse(b"format 3\nwhatever it says\n").unwrap_err();
    assert_eq!(bad, BadRecord::Newer { found: 3 });
    let words = bad.to_string();
    assert!(words.contains("format 3") && words.contains("newer"), "{words}");
}

#[test]
fn a_line_that_was_cut_off_counts_for_nothing() {
    for len in 0..FORMAT_2.len() - 1 {
        if let Ok(contents) = parse(&FORMAT_2[..len]) {
            assert!(!contents.is_complete, "{len}");
        }
    }
}

#[test]
fn nonsense_is_neither_obeyed_nor_removed() {
    let directory = tempfile::tempdir().unwrap();
    for text in [
        "",
        "at /x\n",
        "at relative\nstaging /x\n",
        "\0\0",
        "format 2\nat /x\nstaging /y\nsession dev x /z\n",
        "format 2\nat /x\nstaging /y\nshown wrongly z\n",
        "format 9\nat /x\nstaging /y\n",
    ] {
        std::fs::write(directory.path().join("0.mount"), text).unwrap();
        assert!(recover(directory.path(), Privilege::Root).unwrap().is_empty(), "{text:?}");
        assert!(directory.path().join("0.mount").exists());
    }
    assert!(recover(Path::new("/not/there"), Privilege::Root).unwrap().is_empty());
}
