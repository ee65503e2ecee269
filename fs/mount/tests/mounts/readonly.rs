//! What is refused on a read-only mount, and with which errno: each call on every road, against a directory of the
//! host's own filesystem that is mounted read-only.

use std::fs::{FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{
    Access, AtFlags, CWD, Dir, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom,
    Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use spanfs_mount::{Busy, Ended};

use crate::conformance::{PATIENCE, Road, mount, mounter, roads};
use crate::layers::Maker;
use crate::scratch::{Scratch, may_mount};

/// A call below a directory, as a number that says what came of it.
type Call = fn(&Path) -> Result<u64>;

fn open(at: &Path, path: &str, flags: OFlags) -> Result<rustix::fd::OwnedFd> {
    rustix::fs::open(at.join(path), flags | OFlags::CLOEXEC, Mode::from(0o644))
}

fn opened(at: &Path, path: &str, flags: OFlags) -> Result<u64> {
    open(at, path, flags).map(|_| 0)
}

fn done(outcome: Result<()>) -> Result<u64> {
    outcome.map(|()| 0)
}

fn path_of(at: &Path, len: usize) -> std::path::PathBuf {
    at.join(vec!["."; len / 2].join("/"))
}

/// What would change something.
const CHANGES: &[(&str, Call)] = &[
    ("open to write", |at| opened(at, "d/f", OFlags::WRONLY)),
    ("open to read and write", |at| opened(at, "d/f", OFlags::RDWR)),
    ("open to append", |at| opened(at, "d/f", OFlags::WRONLY | OFlags::APPEND)),
    ("open to cut", |at| opened(at, "d/f", OFlags::RDONLY | OFlags::TRUNC)),
    ("open by a link to write", |at| opened(at, "l", OFlags::WRONLY)),
    ("open a directory to write", |at| opened(at, "d", OFlags::WRONLY)),
    ("open a pipe to write", |at| opened(at, "p", OFlags::RDWR | OFlags::NONBLOCK)),
    ("create", |at| opened(at, "d/new", OFlags::RDONLY | OFlags::CREATE)),
    ("create what is there", |at| opened(at, "d/f", OFlags::RDONLY | OFlags::CREATE)),
    ("create only anew", |at| opened(at, "d/f", OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL)),
    ("create below a file", |at| opened(at, "d/f/x", OFlags::RDONLY | OFlags::CREATE)),
    ("create below nothing", |at| opened(at, "no/x", OFlags::RDONLY | OFlags::CREATE)),
    ("create without a name", |at| opened(at, "d", OFlags::WRONLY | OFlags::TMPFILE)),
    ("mkdir", |at| done(rustix::fs::mkdir(at.join("new"), Mode::RWXU))),
    ("mkdir where one is", |at| done(rustix::fs::mkdir(at.join("d"), Mode::RWXU))),
    ("mkdir below a file", |at| done(rustix::fs::mkdir(at.join("d/f/x"), Mode::RWXU))),
    ("rmdir", |at| done(rustix::fs::rmdir(at.join("empty")))),
    ("rmdir of a full one", |at| done(rustix::fs::rmdir(at.join("d")))),
    ("rmdir of a file", |at| done(rustix::fs::rmdir(at.join("d/f")))),
    ("rmdir of nothing", |at| done(rustix::fs::rmdir(at.join("no")))),
    ("rmdir of .", |at| done(rustix::fs::rmdir(at.join("d/.")))),
    ("unlink", |at| done(rustix::fs::unlink(at.join("d/f")))),
    ("unlink of a directory", |at| done(rustix::fs::unlink(at.join("d")))),
    ("unlink of nothing", |at| done(rustix::fs::unlink(at.join("no")))),
    ("unlink of a link", |at| done(rustix::fs::unlink(at.join("loop")))),
    ("rename", |at| done(rustix::fs::rename(at.join("d/f"), at.join("new")))),
    ("rename over another", |at| done(rustix::fs::rename(at.join("d/f"), at.join("l")))),
    ("rename of nothing", |at| done(rustix::fs::rename(at.join("no"), at.join("new")))),
    ("rename out of the mount", |at| {
        done(rustix::fs::rename(at.join("d/f"), at.with_file_name("out")))
    }),
    ("rename as an exchange", |at| {
        done(rustix::fs::renameat_with(
            CWD,
            at.join("d/f"),
            CWD,
            at.join("l"),
            RenameFlags::EXCHANGE,
        ))
    }),
    ("link", |at| done(rustix::fs::link(at.join("d/f"), at.join("new")))),
    ("link over another", |at| done(rustix::fs::link(at.join("d/f"), at.join("l")))),
    ("link of a directory", |at| done(rustix::fs::link(at.join("d"), at.join("new")))),
    ("symlink", |at| done(rustix::fs::symlink("x", at.join("new")))),
    ("symlink over another", |at| done(rustix::fs::symlink("x", at.join("l")))),
    ("mknod", |at| done(rustix::fs::mknodat(CWD, at.join("new"), FileType::Fifo, Mode::RWXU, 0))),
    ("mknod where one is", |at| {
        done(rustix::fs::mknodat(CWD, at.join("p"), FileType::Fifo, Mode::RWXU, 0))
    }),
    ("chmod", |at| done(rustix::fs::chmod(at.join("d/f"), Mode::RWXU))),
    ("chmod of the mode it has", |at| done(rustix::fs::chmod(at.join("d/f"), Mode::from(0o644)))),
    ("chown", |at| {
        done(rustix::fs::chown(at.join("d/f"), Some(Uid::from_raw(9)), Some(Gid::from_raw(9))))
    }),
    ("chown of nothing", |at| done(rustix::fs::chown(at.join("no"), Some(Uid::from_raw(9)), None))),
    ("truncate", |at| match std::fs::File::options().write(true).open(at.join("d/f")) {
        Ok(file) => done(rustix::fs::ftruncate(file, 1)),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }),
    ("ftruncate of what is open to read", |at| {
        done(rustix::fs::ftruncate(open(at, "d/f", OFlags::RDONLY)?, 1))
    }),
    ("fallocate", |at| {
        done(rustix::fs::fallocate(open(at, "d/f", OFlags::RDONLY)?, FallocateFlags::empty(), 0, 9))
    }),
    ("fchmod of what is open to read", |at| {
        done(rustix::fs::fchmod(open(at, "d/f", OFlags::RDONLY)?, Mode::RWXU))
    }),
    ("set times", |at| {
        let file = std::fs::File::open(at.join("d/f")).map_err(|_| Errno::IO)?;
        let set = file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH));
        set.map(|()| 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }),
    ("set an attribute", |at| {
        done(rustix::fs::setxattr(at.join("d/f"), "user.new", b"1", XattrFlags::empty()))
    }),
    ("set an attribute that is there", |at| {
        done(rustix::fs::setxattr(at.join("d/f"), "user.a", b"2", XattrFlags::CREATE))
    }),
    ("remove an attribute", |at| done(rustix::fs::removexattr(at.join("d/f"), "user.a"))),
    ("remove an attribute that is not", |at| {
        done(rustix::fs::removexattr(at.join("d/f"), "user.no"))
    }),
    ("may it be written", |at| done(rustix::fs::access(at.join("d/f"), Access::WRITE_OK))),
    ("may its directory be written", |at| done(rustix::fs::access(at.join("d"), Access::WRITE_OK))),
    ("may a pipe be written", |at| done(rustix::fs::access(at.join("p"), Access::WRITE_OK))),
    ("chmod by the library", |at| {
        let set = std::fs::set_permissions(at.join("d"), Permissions::from_mode(0o700));
        set.map(|()| 0).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }),
];

/// What only looks.
const LOOKS: &[(&str, Call)] = &[
    ("open nothing", |at| opened(at, "no", OFlags::RDONLY)),
    ("open below a file", |at| opened(at, "d/f/x", OFlags::RDONLY)),
    ("open a file as a directory", |at| opened(at, "d/f", OFlags::RDONLY | OFlags::DIRECTORY)),
    ("open with a slash behind", |at| opened(at, "d/f/", OFlags::RDONLY)),
    ("open a loop", |at| opened(at, "loop", OFlags::RDONLY)),
    ("open below a loop", |at| opened(at, "loop/x", OFlags::RDONLY)),
    ("open by a link", |at| opened(at, "l", OFlags::RDONLY)),
    ("open a link itself", |at| opened(at, "l", OFlags::RDONLY | OFlags::NOFOLLOW)),
    ("open a link that leads nowhere", |at| opened(at, "nowhere", OFlags::RDONLY)),
    ("open the longest name", |at| opened(at, &"n".repeat(255), OFlags::RDONLY)),
    ("open a longer name", |at| opened(at, &"n".repeat(256), OFlags::RDONLY)),
    ("open a longer name below", |at| {
        opened(at, &format!("d/{}", "n".repeat(256)), OFlags::RDONLY)
    }),
    ("open by a path too long", |at| {
        rustix::fs::open(path_of(at, 5000), OFlags::RDONLY, Mode::empty()).map(|_| 0)
    }),
    ("open for direct reading", |at| opened(at, "d/f", OFlags::RDONLY | OFlags::NOATIME)),
    ("read a directory as a file", |at| {
        rustix::io::read(open(at, "d", OFlags::RDONLY)?, &mut [0; 9][..]).map(|len| len as u64)
    }),
    ("read at the end", |at| {
        rustix::io::pread(open(at, "d/f", OFlags::RDONLY)?, &mut [0; 9][..], 5000)
            .map(|len| len as u64)
    }),
    ("read across the end", |at| {
        rustix::io::pread(open(at, "d/f", OFlags::RDONLY)?, &mut [0; 99][..], 4990)
            .map(|len| len as u64)
    }),
    ("read far behind the end", |at| {
        rustix::io::pread(open(at, "d/f", OFlags::RDONLY)?, &mut [0; 9][..], 1 << 40)
            .map(|len| len as u64)
    }),
    ("read nothing", |at| {
        rustix::io::pread(open(at, "d/f", OFlags::RDONLY)?, &mut [0; 0][..], 0)
            .map(|len| len as u64)
    }),
    ("read at no offset", |at| {
        rustix::io::pread(open(at, "d/f", OFlags::RDONLY)?, &mut [0; 9][..], u64::MAX)
            .map(|len| len as u64)
    }),
    ("write what is open to read", |at| {
        rustix::io::write(open(at, "d/f", OFlags::RDONLY)?, b"x").map(|len| len as u64)
    }),
    ("list a file", |at| {
        Dir::new(open(at, "d/f", OFlags::RDONLY)?)?.next().map_or(Ok(0), |it| it.map(|_| 1))
    }),
    ("seek to the end", |at| rustix::fs::seek(open(at, "d/f", OFlags::RDONLY)?, SeekFrom::End(0))),
    ("seek before the start", |at| {
        rustix::fs::seek(open(at, "d/f", OFlags::RDONLY)?, SeekFrom::Current(-1))
    }),
    ("seek data behind the end", |at| {
        rustix::fs::seek(open(at, "d/f", OFlags::RDONLY)?, SeekFrom::Data(5000))
    }),
    ("seek a hole", |at| rustix::fs::seek(open(at, "d/f", OFlags::RDONLY)?, SeekFrom::Hole(0))),
    ("what a link says", |at| {
        rustix::fs::readlink(at.join("l"), Vec::new()).map(|it| it.to_bytes().len() as u64)
    }),
    ("what a file says as a link", |at| {
        rustix::fs::readlink(at.join("d/f"), Vec::new()).map(|_| 0)
    }),
    ("an attribute", |at| {
        rustix::fs::getxattr(at.join("d/f"), "user.a", &mut [0; 9][..]).map(|len| len as u64)
    }),
    ("the length of an attribute", |at| {
        rustix::fs::getxattr(at.join("d/f"), "user.a", &mut [0; 0][..]).map(|len| len as u64)
    }),
    ("an attribute into too little room", |at| {
        rustix::fs::getxattr(at.join("d/f"), "user.a", &mut [0; 1][..]).map(|len| len as u64)
    }),
    ("an attribute that is not", |at| {
        rustix::fs::getxattr(at.join("d/f"), "user.no", &mut [0; 9][..]).map(|len| len as u64)
    }),
    ("an attribute of no namespace", |at| {
        rustix::fs::getxattr(at.join("d/f"), "no.space", &mut [0; 9][..]).map(|len| len as u64)
    }),
    ("an attribute of a link", |at| {
        rustix::fs::lgetxattr(at.join("l"), "user.a", &mut [0; 9][..]).map(|len| len as u64)
    }),
    ("names into too little room", |at| {
        rustix::fs::listxattr(at.join("d/f"), &mut [0; 1][..]).map(|len| len as u64)
    }),
    ("may it be read", |at| done(rustix::fs::access(at.join("d/f"), Access::READ_OK))),
    ("may it be run", |at| done(rustix::fs::access(at.join("d/f"), Access::EXEC_OK))),
    ("may its directory be searched", |at| done(rustix::fs::access(at.join("d"), Access::EXEC_OK))),
    ("is nothing there", |at| done(rustix::fs::access(at.join("no"), Access::EXISTS))),
    ("stat of a loop itself", |at| rustix::fs::lstat(at.join("loop")).map(|it| it.st_size as u64)),
    ("stat of the parent of the root", |at| {
        rustix::fs::stat(at.join("d/../d/f")).map(|it| it.st_size as u64)
    }),
    ("stat of what is open", |at| {
        let flags = AtFlags::EMPTY_PATH;
        let file = open(at, "d/f", OFlags::RDONLY)?;
        rustix::fs::statat(file, "", flags).map(|it| it.st_size as u64)
    }),
    ("sync a file", |at| done(rustix::fs::fsync(open(at, "d/f", OFlags::RDONLY)?))),
    ("sync a directory", |at| done(rustix::fs::fdatasync(open(at, "d", OFlags::RDONLY)?))),
    ("longest name in a path", |at| rustix::fs::statvfs(at).map(|it| it.f_namemax)),
];

fn maker() -> Maker {
    let mut maker = Maker::default();
    maker
        .directory("d", 0o755)
        .file_with("d/f", 0o644, vec![7; 5000], &[("user.a", b"value")])
        .directory("empty", 0o755)
        .symlink("l", "d/f")
        .symlink("loop", "loop")
        .symlink("nowhere", "no/where")
        .device("p", spanfs_layer::Kind::Fifo, 0, 0);
    maker
}

/// The same by the host's filesystem, mounted read-only.
fn plain(at: &Path) {
    std::fs::create_dir_all(at.join("d")).unwrap();
    std::fs::create_dir(at.join("empty")).unwrap();
    std::fs::write(at.join("d/f"), vec![7; 5000]).unwrap();
    std::fs::set_permissions(at.join("d/f"), Permissions::from_mode(0o644)).unwrap();
    rustix::fs::setxattr(at.join("d/f"), "user.a", b"value", XattrFlags::empty()).unwrap();
    for (name, target) in [("l", "d/f"), ("loop", "loop"), ("nowhere", "no/where")] {
        rustix::fs::symlink(target, at.join(name)).unwrap();
    }
    rustix::fs::mknodat(CWD, at.join("p"), FileType::Fifo, Mode::from(0o620), 0).unwrap();
    mount_bind(at, at).unwrap();
    mount_remount(at, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
}

fn outcomes(at: &Path) -> Vec<(&'static str, Result<u64>)> {
    CHANGES.iter().chain(LOOKS).map(|(what, call)| (*what, call(at))).collect()
}

/// What is right, too. EROFS itself syncs nothing (overlayfs above it does not ask), and FUSE asks us for attributes
/// of namespaces that the kernel does not know: there are none.
fn is_right_too(road: Road, what: &str, found: Result<u64>) -> bool {
    match road {
        Road::Direct | Road::OverFuse(..) => what.starts_with("sync") && found == Err(Errno::INVAL),
        Road::Inode(..) => what == "an attribute of no namespace" && found == Err(Errno::NODATA),
    }
}

#[test]
fn each_call_is_refused_or_answered_as_on_a_read_only_mount_of_the_host() {
    if !may_mount("readonly") {
        return;
    }
    let scratch = Scratch::new();
    let at = scratch.directory("plain");
    plain(&at);
    let expected = outcomes(&at);
    let refused = expected.iter().take(CHANGES.len()).filter(|it| it.1 == Err(Errno::ROFS)).count();
    assert!(refused > CHANGES.len() / 2, "what is compared with: {expected:?}");
    let mut differences = Vec::new();
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (mount, _content) = mount(&mounter, &maker(), road, &scratch, &at);
        for ((what, found), (_, expected)) in outcomes(&at).into_iter().zip(&expected) {
            if found != *expected && !is_right_too(road, what, found) {
                differences.push(format!("{road:?}, {what}: {found:?}, expected {expected:?}"));
            }
        }
        assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone, "{road:?}");
    }
    assert!(differences.is_empty(), "{differences:#?}");
}
