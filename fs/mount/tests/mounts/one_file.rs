//! The one-file front through a real FUSE mount: misses, failures, ends.

use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spanfs_mount::filesystem::Open;
use spanfs_mount::front::one_file::{FILE_NAME, LARGE_NAME, OneFile};
use spanfs_mount::mountinfo;
use spanfs_mount::transport::{
    CAPABILITIES, FuseOptions, Privilege, ServeError, Server, ServerOptions, Session, Transport,
};

use crate::content::{Fate, Handle, Steered, noise};
use crate::scratch::{Scratch, has, may_mount};

fn fuse_options(privilege: Privilege, transport: Transport) -> FuseOptions {
    FuseOptions {
        privilege,
        transport,
        allow_other: privilege == Privilege::Root,
        capabilities: CAPABILITIES,
        source: "soci".into(),
        subtype: "rawBridge".into(),
        read_ahead_kib: None,
    }
}

/// Those that root may take on this machine.
fn transports() -> impl Iterator<Item = Transport> {
    [Transport::Dev, Transport::Uring, Transport::Fuse3].into_iter().filter(|it| has(*it))
}

fn serve(
    server: &Server,
    content: &Arc<Steered>,
    scratch: &Scratch,
    open: Open,
    transport: Transport,
) -> Session {
    let filesystem = Arc::new(OneFile::new(Arc::new(Handle(Arc::clone(content))), "test", open));
    let mount_point = scratch.directory("fuse");
    server.serve(filesystem, &mount_point, &fuse_options(Privilege::Root, transport)).unwrap()
}

fn server(read_deadline: Duration) -> Server {
    Server::new(ServerOptions { read_deadline, ..ServerOptions::default() })
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn every_byte_arrives_whoever_mounts_and_however_opened() {
    if !may_mount("every_byte_arrives") {
        return;
    }
    let bytes = noise(3 << 20 | 512, 7);
    for (privilege, transport) in [
        (Privilege::Root, Transport::Dev),
        (Privilege::Root, Transport::Uring),
        (Privilege::Root, Transport::Fuse3),
        (Privilege::User, Transport::Fuse3),
    ]
    .into_iter()
    .filter(|(_, transport)| has(*transport))
    {
        for open in [Open::Stateless, Open::Cached, Open::Direct] {
            let scratch = Scratch::new();
            let server = server(PATIENCE);
            let content = Steered::new(bytes.clone(), Fate::Late);
            let front = OneFile::new(Arc::new(Handle(Arc::clone(&content))), "test", open);
            let mount_point = scratch.directory("fuse");
            let session = server
                .serve(Arc::new(front), &mount_point, &fuse_options(privilege, transport))
                .unwrap();
            let mount = mountinfo::mounted_at(&mount_point).unwrap().unwrap();
            assert_eq!(
                (mount.fs_type.as_str(), mount.source.to_str()),
                ("fuse.rawBridge", Some("soci"))
            );
            let file = mount_point.join(FILE_NAME);
            assert_eq!(std::fs::metadata(&file).unwrap().blocks(), bytes.len() as u64 / 512);
            assert!(std::fs::read(&file).unwrap() == bytes, "{privilege:?} {transport} {open:?}");
            assert!(content.fills.load(Ordering::Relaxed) > 0);
            assert!(std::fs::read(mount_point.join(LARGE_NAME)).unwrap() == bytes);
            let names: Vec<_> = std::fs::read_dir(&mount_point)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, [FILE_NAME, LARGE_NAME]);
            session.detach().unwrap();
            assert!(session.wait(PATIENCE));
        }
    }
}

/// Long reads take the pages of a file where they can. That file may be cut, or its disk fail.
#[test]
fn pages_that_cannot_be_read_are_copied_from_elsewhere() {
    if !may_mount("cut_pages") {
        return;
    }
    let scratch = Scratch::new();
    let server = server(PATIENCE);
    let bytes = noise(4 << 20 | 512, 9);
    let content = Steered::new(bytes.clone(), Fate::Late);
    let session = serve(&server, &content, &scratch, Open::Stateless, Transport::Dev);
    let path = session.mount_point().join(LARGE_NAME);
    for (cut, len) in
        [(u64::MAX, 1 << 17), (u64::MAX, 100_001), (1 << 20 | 77, 1 << 17), (0, 1 << 17)]
    {
        if cut < bytes.len() as u64 {
            content.cut_pages(cut);
        }
        let file = std::fs::File::open(&path).unwrap();
        let mut found = Vec::new();
        let mut piece = vec![0; len];
        while let count @ 1.. = file.read_at(&mut piece, found.len() as u64).unwrap() {
            found.extend_from_slice(&piece[..count]);
        }
        assert!(found == bytes, "cut at {cut}, read by {len}");
    }
    assert!(content.lent.load(Ordering::Relaxed) > 80);
    session.detach().unwrap();
    assert!(session.wait(PATIENCE));
}

#[test]
fn failed_and_false_fills_are_eio_and_a_later_read_tries_again() {
    if !may_mount("failed_fills") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = server(PATIENCE);
        let bytes = noise(1 << 20, 3);
        let content = Steered::new(bytes.clone(), Fate::Fail);
        let session = serve(&server, &content, &scratch, Open::Stateless, transport);
        let path = session.mount_point().join(FILE_NAME);
        for fate in [Fate::Fail, Fate::Lie] {
            content.set_fate(fate);
            assert_eq!(std::fs::read(&path).unwrap_err().raw_os_error(), Some(5));
        }
        content.set_fate(Fate::Late);
        assert!(std::fs::read(&path).unwrap() == bytes);
        session.detach().unwrap();
        assert!(session.wait(PATIENCE));
    }
}

#[test]
fn reads_that_wait_do_not_keep_hits_from_being_answered() {
    if !may_mount("reads_that_wait") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = server(PATIENCE);
        let bytes = noise(8 << 20, 5);
        let content = Steered::new(bytes.clone(), Fate::Late);
        let session = serve(&server, &content, &scratch, Open::Direct, transport);
        let file = std::fs::File::open(session.mount_point().join(FILE_NAME)).unwrap();
        let mut first = vec![0; 64 << 10];
        file.read_exact_at(&mut first, 0).unwrap();
        content.set_fate(Fate::Hold);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (1..=40)
                .map(|index| {
                    let file = &file;
                    scope.spawn(move || {
                        let mut page = vec![0; 4096];
                        file.read_exact_at(&mut page, index * (64 << 10)).unwrap();
                        (index, page)
                    })
                })
                .collect();
            content.wait_for_fill();
            let start = Instant::now();
            for _ in 0..100 {
                file.read_exact_at(&mut first, 0).unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(10), "hits waited for misses");
            assert!(first == bytes[..first.len()]);
            while content.fills.load(Ordering::Relaxed) < 41 {
                std::thread::sleep(Duration::from_millis(1));
            }
            content.release();
            for reader in waiting {
                let (index, page) = reader.join().unwrap();
                assert!(page == bytes[index as usize * (64 << 10)..][..4096]);
            }
        });
        drop(file);
        session.detach().unwrap();
        assert!(session.wait(PATIENCE));
    }
}

#[test]
fn a_read_that_nobody_answers_ends_at_its_deadline() {
    if !may_mount("read_deadline") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = server(Duration::from_millis(200));
        let content = Steered::new(noise(1 << 20, 9), Fate::Hold);
        let session = serve(&server, &content, &scratch, Open::Stateless, transport);
        let error = std::fs::read(session.mount_point().join(FILE_NAME)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
        session.detach().unwrap();
        assert!(session.wait(PATIENCE));
    }
}

#[test]
fn a_reader_killed_in_a_read_leaves_a_working_mount() {
    if !may_mount("killed_reader") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = server(PATIENCE);
        let bytes = noise(1 << 20, 11);
        let content = Steered::new(bytes.clone(), Fate::Hold);
        let session = serve(&server, &content, &scratch, Open::Stateless, transport);
        let path = session.mount_point().join(FILE_NAME);
        let mut reader = Command::new("cat")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        content.wait_for_fill();
        reader.kill().unwrap();
        content.release();
        assert!(!reader.wait().unwrap().success());
        let mut read = Vec::new();
        std::fs::File::open(&path).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        session.detach().unwrap();
        assert!(session.wait(PATIENCE));
    }
}

#[test]
fn an_abort_frees_waiting_readers() {
    if !may_mount("abort") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = server(Duration::from_secs(600));
        let content = Steered::new(noise(1 << 20, 13), Fate::Hold);
        let session = serve(&server, &content, &scratch, Open::Direct, transport);
        let path = session.mount_point().join(FILE_NAME);
        let reader = std::thread::spawn(move || std::fs::read(path).map(drop).unwrap_err());
        content.wait_for_fill();
        session.detach().unwrap();
        assert!(!session.wait(Duration::from_millis(50)), "the reader holds it");
        session.connection().abort().unwrap();
        assert!(reader.join().unwrap().raw_os_error().is_some());
        assert!(session.wait(PATIENCE));
        assert_eq!(scratch.mounts(), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn the_limit_of_mounts_is_kept_and_a_place_comes_back() {
    if !may_mount("mounts_max") {
        return;
    }
    for transport in transports() {
        let scratch = Scratch::new();
        let server = Server::new(ServerOptions { mounts_max: 1, ..ServerOptions::default() });
        let content = Steered::new(noise(512, 1), Fate::Late);
        let session = serve(&server, &content, &scratch, Open::Stateless, transport);
        let second = Arc::new(OneFile::new(Arc::new(Handle(content)), "second", Open::Stateless));
        let other = scratch.directory("other");
        let options = fuse_options(Privilege::Root, transport);
        let refused = server.serve(second.clone(), &other, &options);
        assert!(matches!(refused, Err(ServeError::TooMany(_, 1))));
        session.detach().unwrap();
        assert!(session.wait(PATIENCE));
        let until = Instant::now() + PATIENCE;
        while let Err(error) = server.serve(second.clone(), &other, &options) {
            assert!(matches!(error, ServeError::TooMany(..)) && Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
