//! The external suite `pjdfstest` on writable overlays above every road, against the same above a plain directory; in
//! long runs. Among its cases is that whatever changes something is refused once the mount is made read-only.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use spanfs_mount::overlay::{self, OverlayOptions, Upper};
use spanfs_mount::transport::Privilege;
use spanfs_mount::{Busy, Ended};

use crate::conformance::{PATIENCE, Road, mount, mounter, roads};
use crate::layers::rich;
use crate::scratch::{Scratch, is_soak, may_mount};

/// Two users that every Debian has.
const SETTINGS: &str = r#"
[features]
[settings]
naptime = 0.01
allow_remount = true
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;
/// Fewer would say that the suite did not run.
const CASES_MIN: usize = 350;

/// What became of each case: `ok`, `FAILED`, `skipped`.
type Outcomes = BTreeMap<String, String>;

/// Those of a writable overlay above `lower`, in a directory that other users may enter.
fn outcomes(scratch: &Scratch, lower: &Path) -> Outcomes {
    std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let upper = Upper { upper: scratch.directory("upper"), work: scratch.directory("work") };
    let at = scratch.directory("writable");
    let options = OverlayOptions { upper: Some(upper), userxattr: false };
    overlay::mount(&[lower.to_owned()], &at, &options).unwrap();
    let settings = scratch.path().join("settings");
    std::fs::write(&settings, SETTINGS).unwrap();
    let mut found = Outcomes::new();
    // Those that remount once more by themselves: what other cases leave open keeps some from it.
    for cases in [&[][..], &["erofs"]] {
        let mut command = Command::new("pjdfstest");
        let command = command.arg("-c").arg(&settings).arg("-p").arg(&at).args(cases);
        let output = command.output().expect("pjdfstest is installed (tests/run --soak)");
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut words = line.split_whitespace();
            if let (Some(case), Some(outcome @ ("ok" | "FAILED" | "skipped")), None) =
                (words.next(), words.next(), words.next())
            {
                found.insert(case.to_owned(), outcome.to_owned());
            }
        }
    }
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    found
}

#[test]
fn an_external_suite_finds_what_it_finds_above_a_plain_directory() {
    if !is_soak() {
        return eprintln!("pjdfstest is for long runs (SPANFS_TEST_SOAK=1)");
    }
    if !may_mount("pjdfstest") {
        return;
    }
    let scratch = Scratch::new();
    let expected = outcomes(&scratch, &scratch.directory("plain"));
    let refused = expected.iter().filter(|(case, _)| case.contains("erofs"));
    let refused: Vec<_> = refused.filter(|(_, outcome)| *outcome != "ok").collect();
    assert!(expected.len() >= CASES_MIN && refused.is_empty(), "{refused:?} in {expected:#?}");
    for road in roads().filter(|road| !matches!(road, Road::Inode(Privilege::User, _))) {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let lower = scratch.directory("lower");
        let (mount, _content) = mount(&mounter, &rich(), road, &scratch, &lower);
        let found = outcomes(&scratch, &lower);
        let differ: Vec<_> =
            expected.iter().filter(|(case, it)| found.get(*case) != Some(it)).collect();
        assert!(differ.is_empty(), "{road:?}: otherwise than {differ:#?}");
        assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone, "{road:?}");
    }
}
