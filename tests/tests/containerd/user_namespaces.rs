//! Containers whose root is nobody outside.

use spanfs_registry::Registry;

use crate::image::{Image, Layer, noise};
use crate::node::{Node, Setup};
use crate::versions::{Version, on_each_containerd};

on_each_containerd!(container_owns_the_files_of_its_image);

/// containerd 2 lets us map owners; 1.6 can't be told that we can, and changes every file itself.
fn container_owns_the_files_of_its_image(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let files = Layer::new().file("data", 0o600, &noise(60, 3 << 20));
    let image = Image::with_programs().layer(files);
    let (image, _) = image.push_indexed(&registry, "test/users", "v2");
    let node = Node::start(&Setup::of(version));
    let ctr = node.default();
    ctr.pull(&image);
    let map = "0:100000:65536";
    let options = ["--rm", "--uidmap", map, "--gidmap", map, "--remap-labels"];
    let script = "set -- $(ls -ln /data) && echo $3 $4 && cat /proc/self/uid_map && wc -c </data";
    let said = ctr.try_run(&options, &image, "mapped", &["/bin/sh", "-c", script]);
    let said = said.unwrap_or_else(|said| panic!("{said}"));
    let words: Vec<_> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "100000", "65536", "3145728"], "{said}");
    if version == Version::Two {
        let prepared = node.read_log("daemon");
        assert!(!prepared.contains("-remap"), "containerd copied the image: {prepared}");
    }
}
