//! One suite over every road: the same layers must look the same however they are shown.

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spanfs_cache::Content;
use spanfs_layer::{Kind, Tree};
use spanfs_mount::filesystem::Open;
use spanfs_mount::overlay::{OverlayOptions, Upper};
use spanfs_mount::transport::{CAPABILITIES, Privilege, Transport};
use spanfs_mount::{Busy, Ended, Mount, Mounter, MounterOptions, Parts, Shown};

use crate::content::{Fate, Handle, Steered};
use crate::layers::{Maker, Snapshot, rich};
use crate::scratch::{Scratch, has, may_mount};
use crate::snapshot;

/// A way to show layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    Direct,
    OverFuse(Parts, Transport),
    Inode(Privilege, Transport),
}

pub(crate) const ROADS: [Road; 8] = [
    Road::Direct,
    Road::OverFuse(Parts::Hidden, Transport::Dev),
    Road::OverFuse(Parts::Hidden, Transport::Uring),
    Road::OverFuse(Parts::Visible, Transport::Fuse3),
    Road::Inode(Privilege::Root, Transport::Dev),
    Road::Inode(Privilege::Root, Transport::Uring),
    Road::Inode(Privilege::Root, Transport::Fuse3),
    Road::Inode(Privilege::User, Transport::Fuse3),
];

/// Those that this machine has.
pub(crate) fn roads() -> impl Iterator<Item = Road> {
    ROADS.into_iter().filter(|road| road.is_there())
}

impl Road {
    pub(crate) fn is_there(self) -> bool {
        match self {
            Self::Direct => true,
            Self::OverFuse(_, transport) | Self::Inode(_, transport) => has(transport),
        }
    }

    pub(crate) fn set(self, options: &mut MounterOptions) {
        match self {
            Self::Direct => {}
            Self::OverFuse(parts, transport) => {
                (options.parts, options.transport) = (parts, Some(transport));
            }
            Self::Inode(_, transport) => options.transport = Some(transport),
        }
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn mounter(scratch: &Scratch, road: Road) -> Mounter {
    let mut options = MounterOptions::new(scratch.path().join("state"));
    road.set(&mut options);
    Mounter::new(options).unwrap()
}

/// Mount one layer by `road`.
pub(crate) fn mount(
    mounter: &Mounter,
    maker: &Maker,
    road: Road,
    scratch: &Scratch,
    at: &Path,
) -> (Mount, Arc<Steered>) {
    let directory = scratch.directory("layer");
    let fate = if road == Road::Direct { None } else { Some(Fate::Late) };
    let (layer, content) = maker.layer(&directory, fate);
    let mount = match road {
        Road::Inode(privilege, _) => {
            let layers = vec![(layer.name, layer.content)];
            mounter.inodes(Arc::new(maker.tree()), layers, at, privilege).unwrap()
        }
        _ => mounter.layer(&layer, at).unwrap(),
    };
    (mount, content)
}

fn finish(mount: Mount, scratch: &Scratch) {
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
    assert_eq!(scratch.mounts(), Vec::<PathBuf>::new());
    let state = scratch.path().join("state");
    let left = std::fs::read_dir(state.join("records")).unwrap().count();
    assert_eq!(left, 0, "records left");
    assert_eq!(std::fs::read_dir(state).unwrap().count(), 2, "only `records` and `empty` stay");
}

#[test]
fn a_layer_looks_the_same_on_every_road() {
    if !may_mount("conformance") {
        return;
    }
    let maker = rich();
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
        let expected = match road {
            Road::Direct => Shown::ErofsDirect,
            Road::OverFuse(..) => Shown::ErofsOverFuse,
            Road::Inode(..) => Shown::Inodes,
        };
        assert_eq!(mount.layers(), [expected]);
        let visible = if matches!(road, Road::OverFuse(Parts::Visible, _)) { 2 } else { 1 };
        assert_eq!(scratch.mounts().len(), visible, "{road:?}");
        let what = format!("{road:?}");
        snapshot::assert_same(&snapshot::of(&at), &maker.model, &what);
        snapshot::assert_same(&snapshot::of(&at), &maker.model, &format!("{what} again"));
        let statfs = rustix::fs::statfs(&at).unwrap();
        assert_eq!(statfs.f_namelen, 255);
        assert!(statfs.f_blocks > 0);
        let big = at.join("big").metadata().unwrap();
        assert_eq!(big.blocks(), big.size().div_ceil(512));
        finish(mount, &scratch);
    }
}

/// A stand-in for kernels that lack one thing or another: it is not taken although it is offered.
#[test]
fn a_layer_looks_the_same_without_each_capability_of_the_kernel() {
    if !may_mount("capabilities") {
        return;
    }
    let maker = rich();
    let single = (0..u64::BITS).map(|bit| 1 << bit).filter(|flag| CAPABILITIES & flag != 0);
    let missing: Vec<u64> = single.chain([CAPABILITIES]).collect();
    let own = [Transport::Dev, Transport::Uring].into_iter().filter(|it| has(*it));
    for (transport, missing) in own.flat_map(|it| missing.iter().map(move |&flags| (it, flags))) {
        for road in
            [Road::OverFuse(Parts::Hidden, transport), Road::Inode(Privilege::Root, transport)]
        {
            let scratch = Scratch::new();
            let mut options = MounterOptions::new(scratch.path().join("state"));
            road.set(&mut options);
            options.capabilities &= !missing;
            let mounter = Mounter::new(options).unwrap();
            let at = scratch.directory("at");
            let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
            let what = format!("{road:?} without {missing:#x}");
            snapshot::assert_same(&snapshot::of(&at), &maker.model, &what);
            finish(mount, &scratch);
        }
    }
}

#[test]
fn inode_numbers_are_stable() {
    if !may_mount("inode_numbers") {
        return;
    }
    let maker = rich();
    for road in roads() {
        let numbers = [(); 2].map(|()| {
            let scratch = Scratch::new();
            let mounter = mounter(&scratch, road);
            let at = scratch.directory("at");
            let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
            let mut numbers: Vec<u64> = maker
                .model
                .keys()
                .map(|path| at.join(path).symlink_metadata().unwrap().ino())
                .collect();
            numbers.push(at.metadata().unwrap().ino());
            drop(mount);
            numbers
        });
        assert_eq!(numbers[0], numbers[1], "{road:?}");
        assert!(numbers[0].iter().all(|&ino| ino > 0 && ino < 1 << 32));
    }
}

#[test]
fn single_layers_show_whiteouts_as_overlayfs_wants_them() {
    if !may_mount("whiteouts") {
        return;
    }
    let mut maker = Maker::default();
    maker.directory("kept", 0o755).whiteout("kept/.wh.gone").directory("opaque", 0o755);
    maker.whiteout("opaque/.wh..wh..opq").file("opaque/new", 0o644, vec![1; 600]);
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
        let whiteout = at.join("kept/gone").symlink_metadata().unwrap();
        assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o20_000, 0), "{road:?}");
        let opaque = snapshot::xattrs(&at.join("opaque"));
        assert_eq!(opaque.get(b"trusted.overlay.opaque".as_slice()), Some(&b"y".to_vec()));
        let names: Vec<_> = snapshot::of(&at).into_keys().collect();
        assert_eq!(names, ["kept", "kept/gone", "opaque", "opaque/new"]);
        finish(mount, &scratch);
    }
}

#[test]
fn sparse_files_read_zeros_between_their_runs() {
    if !may_mount("sparse") {
        return;
    }
    let mut maker = Maker::default();
    maker
        .sparse("aligned", 1 << 20, &[(0, 4096), (65_536, 512)])
        .sparse("odd", 300_001, &[(1, 700), (5000, 3), (299_000, 1001)])
        .sparse("hole", 70_000, &[]);
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let (mount, _content) = mount(&mounter, &maker, road, &scratch, &at);
        snapshot::assert_same(&snapshot::of(&at), &maker.model, &format!("{road:?}"));
        finish(mount, &scratch);
    }
}

/// Three layers that replace, hide and extend one another, and what must be seen of them.
fn stack() -> (Vec<Maker>, Snapshot) {
    let mut bottom = rich();
    bottom.directory("etc", 0o755).file("etc/a", 0o644, vec![1; 10]).file(
        "etc/b",
        0o644,
        vec![2; 700],
    );
    bottom.directory("old", 0o755).file("old/x", 0o644, vec![3; 3]);
    let mut middle = Maker::default();
    middle.whiteout("etc/.wh.a").directory("old", 0o700).whiteout("old/.wh..wh..opq");
    middle.file("old/y", 0o644, vec![4; 40_000]).file("link", 0o600, vec![5; 5]);
    let mut top = Maker::default();
    top.directory("etc", 0o711).file("etc/c", 0o644, vec![6; 6]).whiteout(".wh.many");
    top.device("console", Kind::CharDevice, 5, 1);
    let mut model = bottom.model.clone();
    model.retain(|path, _| !path.starts_with("many") && path != "etc/a" && path != "old/x");
    for layer in [&middle, &top] {
        model.extend(layer.model.iter().map(|(path, seen)| (path.clone(), seen.clone())));
    }
    for seen in model.values_mut().filter(|seen| seen.mode & 0o170_000 == 0o40_000) {
        seen.nlink = 0; // overlayfs says 1 for all directories.
    }
    (vec![bottom, middle, top], model)
}

#[test]
fn an_image_looks_the_same_stacked_and_merged() {
    if !may_mount("image") {
        return;
    }
    let (makers, model) = stack();
    for road in roads() {
        let scratch = Scratch::new();
        let mounter = mounter(&scratch, road);
        let at = scratch.directory("at");
        let fate = if road == Road::Direct { None } else { Some(Fate::Late) };
        let layers: Vec<_> = (0..)
            .zip(&makers)
            .map(|(number, maker)| maker.layer(&scratch.directory(&format!("l{number}")), fate).0)
            .collect();
        let mount = match road {
            Road::Inode(privilege, _) => {
                let trees: Vec<Tree> = makers.iter().map(Maker::tree).collect();
                let merged = Arc::new(Tree::merge(&trees).unwrap());
                let contents =
                    layers.into_iter().map(|layer| (layer.name, layer.content)).collect();
                mounter.inodes(merged, contents, &at, privilege).unwrap()
            }
            _ => mounter.image(&layers, &at, &OverlayOptions::default()).unwrap(),
        };
        snapshot::assert_same(&snapshot::of(&at), &model, &format!("{road:?}"));
        let refused = std::fs::write(at.join("etc/new"), "x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
        finish(mount, &scratch);
    }
}

#[test]
fn an_image_of_one_layer_hides_its_whiteouts() {
    if !may_mount("one_layer") {
        return;
    }
    let mut maker = Maker::default();
    maker.file("a", 0o644, vec![9; 9]).whiteout(".wh.b");
    let scratch = Scratch::new();
    let mounter = mounter(&scratch, Road::Direct);
    let at = scratch.directory("at");
    let (layer, _content) = maker.layer(&scratch.directory("layer"), Some(Fate::Late));
    let mount = mounter.image(&[layer], &at, &OverlayOptions::default()).unwrap();
    snapshot::assert_same(&snapshot::of(&at), &maker.model, "one layer");
    finish(mount, &scratch);
}

#[test]
fn a_writable_image_keeps_changes_in_its_upper_directory() {
    if !may_mount("writable") {
        return;
    }
    let scratch = Scratch::new();
    let mounter = mounter(&scratch, Road::Direct);
    let at = scratch.directory("at");
    let (layer, _content) = rich().layer(&scratch.directory("layer"), Some(Fate::Late));
    let upper = Upper { upper: scratch.directory("upper"), work: scratch.directory("work") };
    let options = OverlayOptions { upper: Some(upper.clone()), userxattr: false };
    let mount = mounter.image(&[layer], &at, &options).unwrap();
    let mut file = std::fs::File::options().append(true).open(at.join("bin/ping")).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    let mut expected = rich().model["bin/ping"].content.clone();
    expected.extend_from_slice(b"more");
    assert!(std::fs::read(at.join("bin/ping")).unwrap() == expected);
    std::fs::remove_file(at.join("link")).unwrap();
    assert!(!at.join("link").exists());
    assert!(std::fs::read(upper.upper.join("bin/ping")).unwrap() == expected);
    finish(mount, &scratch);
}

#[test]
fn two_hundred_layers_under_long_paths_are_stacked() {
    if !may_mount("two_hundred_layers") {
        return;
    }
    let scratch = Scratch::new();
    let long = scratch.directory(&format!("{}/{}", "l".repeat(200), "m".repeat(200)));
    let mounter = Mounter::new(MounterOptions::new(long.join("state"))).unwrap();
    let at = scratch.directory("at");
    let mut layers = Vec::new();
    for number in 0..200 {
        let mut maker = Maker::default();
        maker.file(&format!("file-{number}"), 0o644, vec![number as u8; 100]);
        layers.push(maker.layer(&long.join(number.to_string()), None).0);
    }
    let mount = mounter.image(&layers, &at, &OverlayOptions::default()).unwrap();
    for number in [0, 1, 100, 199] {
        let content = std::fs::read(at.join(format!("file-{number}"))).unwrap();
        assert_eq!(content, [number as u8; 100]);
    }
    assert_eq!(mount.layers(), [Shown::ErofsDirect; 200]);
    assert_eq!(mount.unmount(PATIENCE, Busy::Leave).unwrap(), Ended::Gone);
}

#[test]
fn a_layer_mounted_while_incomplete_keeps_working_when_its_parts_are_hidden() {
    if !may_mount("hidden_parts") {
        return;
    }
    let scratch = Scratch::new();
    let mut options = MounterOptions::new(scratch.path().join("state"));
    options.open = Open::Direct;
    let mounter = Mounter::new(options).unwrap();
    let at = scratch.directory("at");
    let maker = rich();
    let (layer, content) = maker.layer(&scratch.directory("layer"), Some(Fate::Late));
    let mount = mounter.layer(&layer, &at).unwrap();
    let content_len = Handle(content).len();
    assert!(content_len >= 3 << 20);
    let file = std::fs::File::open(at.join("big")).unwrap();
    let expected = &maker.model["big"].content;
    // A mount in use outlives its unmount, and is still served.
    assert_eq!(mount.unmount(Duration::from_millis(50), Busy::Leave).unwrap(), Ended::InUse);
    let mut tail = vec![0; 1 << 20];
    file.read_exact_at(&mut tail, 2 << 20).unwrap();
    assert!(tail == expected[2 << 20..][..1 << 20]);
    let mut all = Vec::new();
    (&file).read_to_end(&mut all).unwrap();
    assert!(all == *expected);
}
