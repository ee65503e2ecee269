//! A user without any privilege: mounts through fusermount3, programs in a user namespace.
//!
//! The user gets mount and process namespaces in which `/dev/fuse` is open to everybody, as it is on
//! machines of the world; they go with their first process, and all that a failed test leaves with them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use spanfs_layer::Digest;
use spanfs_registry::Registry;

use crate::node::{self, REPOSITORY};
use crate::peers::{DockerRegistry, Guarded, able, fixture, run, skopeo_copy, spanfs};
use crate::scratch::Scratch;
use crate::trees::{self, look};

const TOOLS: &[&str] = &["unshare", "setpriv", "fusermount3", "busybox"];

/// As root, inside the namespaces: what a machine for users looks like. `$1` is the user's place.
const MACHINE: &str = r#"
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mkdir -p "$1/dev"
mount -t tmpfs dev "$1/dev"
mknod -m 0666 "$1/dev/fuse" c 10 229
mount --bind "$1/dev/fuse" /dev/fuse
(cat /etc/passwd; echo "tester:x:4242:4242::$1/home:/bin/sh") >"$1/passwd"
mount --bind "$1/passwd" /etc/passwd
: >"$1/spanfs"
mount --bind "$2" "$1/spanfs"
cd "$1/home"
exec setpriv --reuid=4242 --regid=4242 --clear-groups --inh-caps=-all \
    env -i PATH="$PATH" HOME="$1/home" TMPDIR="$1/home/tmp" IMAGE="$4" S="$1/spanfs" \
    bash -eEuc "trap 'echo \"failed: line \$LINENO: \$BASH_COMMAND\" >&2' ERR
$3"
"#;

/// A user's place on disk.
struct User {
    place: PathBuf,
}

impl User {
    fn new(scratch: &Scratch) -> Self {
        let place = scratch.path("user");
        fs::create_dir(&place).expect("directory");
        for path in [scratch.dir.path(), &place] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("open");
        }
        fs::create_dir_all(place.join("home/tmp")).expect("directory");
        run(Command::new("chown").args(["-R", "4242:4242"]).arg(place.join("home")));
        Self { place }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.join("home").join(name)
    }

    /// Runs a script as the user; `$S` is spanfs, `$IMAGE` an image.
    fn run(&self, image: &str, script: &str) -> Output {
        let output = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--", "bash", "-c", MACHINE])
            .arg("machine")
            .arg(&self.place)
            .arg(spanfs())
            .args([script, image])
            .output()
            .expect("unshare starts");
        assert!(
            output.status.success(),
            "{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }
}

/// What GNU tar, run by the user, saw of a tree.
fn seen(tar: &Path, scratch: &Scratch) -> PathBuf {
    let extracted = scratch.path("extracted");
    fs::create_dir(&extracted).expect("directory");
    run(Command::new("tar")
        .arg("-xpf")
        .arg(tar)
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(&extracted));
    extracted
}

#[test]
fn a_user_sees_every_file_as_it_is() {
    if !able(&[TOOLS, &["docker-registry", "skopeo"]].concat(), true) {
        return;
    }
    let registry = DockerRegistry::start(&Guarded::default());
    let image = format!("{}/golden/v2:1", registry.address);
    skopeo_copy(
        &format!("oci:{}", fixture("images/v2").display()),
        &format!("docker://{image}"),
        &["--all", "--dest-tls-verify=false"],
    );
    let scratch = Scratch::new();
    let user = User::new(&scratch);
    let script = r#"
        mkdir m
        $S mount $IMAGE m
        $S --json status m >status.json
        tar -cf seen.tar --format=posix --numeric-owner --xattrs --xattrs-include='*' -C m .
        if touch m/new 2>/dev/null; then exit 1; fi
        $S umount m
        if grep fuse.spanfs /proc/mounts; then exit 1; fi
        test -z "$(ls -A m)"

        # Ctrl-C ends a mount in the foreground.
        $S mount --foreground $IMAGE m & pid=$!
        for _ in $(seq 200); do if test -e m/bin/ready; then break; fi; sleep 0.05; done
        cat m/bin/ready >/dev/null
        kill -INT $pid
        wait $pid
        test -z "$(ls -A m)"

        $S mount $IMAGE m
        test -e m/bin/ready
        $S umount --all
        if grep fuse.spanfs /proc/mounts; then exit 1; fi

        # What only root can have is refused, and says so.
        code=0; $S mount --rw $IMAGE m 2>refused || code=$?
        test $code = 4
        grep -q 'needs root' refused
        grep -q 'spanfs run' refused
        code=0; $S mount --front erofs $IMAGE m 2>refused || code=$?
        test $code = 1
        grep -q 'CAP_SYS_ADMIN' refused
    "#;
    user.run(&image, script);
    trees::assert_same(&trees::golden(), &look(&seen(&user.path("seen.tar"), &scratch)));
    let status = fs::read_to_string(user.path("status.json")).expect("status");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["mounts"][0]["front"], "inode", "{status}");
}

#[test]
fn a_user_runs_programs_as_root_of_a_namespace() {
    if !able(TOOLS, true) {
        return;
    }
    let registry = Registry::builder().start().expect("registry");
    let scratch = Scratch::new();
    let image = busybox_image(&registry, &scratch);
    let user = User::new(&scratch);
    let script = r#"
        test "$($S run $IMAGE -- /bin/busybox id -u)" = 0
        test "$($S run $IMAGE -- /bin/busybox sh -c 'echo changed >/new && cat /new /etc/name')" = "$(printf 'changed\nimage')"
        test "$($S run $IMAGE -- /bin/busybox cat /etc/name)" = image
        test "$($S run --env A=b --workdir /etc $IMAGE -- /bin/busybox sh -c 'echo $A $(pwd)')" = 'b /etc'
        $S run $IMAGE -- /bin/busybox test -e /proc/self/status
        code=0; $S run $IMAGE -- /bin/busybox sh -c 'exit 7' || code=$?
        test $code = 7
        code=0; $S run $IMAGE -- /bin/busybox sh -c 'kill -9 $$' || code=$?
        test $code = 137
        code=0; $S run --read-only $IMAGE -- /bin/busybox touch /new 2>refused || code=$?
        test $code = 1
        grep -q 'Read-only' refused
        if grep -e fuse -e spanfs-run /proc/mounts | grep -v fusectl | grep -v /dev/fuse | grep -v "$S"; then exit 1; fi
        test -z "$(ls -A tmp | grep -v "^spanfs-4242$")"
    "#;
    user.run(&image, script);
}

#[test]
fn a_user_sees_the_demo() {
    if !able(&[TOOLS, &["python3"]].concat(), true) {
        return;
    }
    let scratch = Scratch::new();
    let user = User::new(&scratch);
    let script = r#"
        $S demo --size 20M --link lan >said
        grep -q '^checked [0-9]* files and directories: all as in the source$' said
        grep -q 'times sooner' said
        if grep -e fuse.spanfs -e spanfs-demo /proc/mounts; then exit 1; fi
        test -z "$(ls -A tmp | grep -v "^spanfs-4242$")"
        test -z "$(ls -A . | grep -v -e ^tmp$ -e ^said$)"
    "#;
    user.run("-", script);
}

/// An image of one program, `busybox`, indexed.
fn busybox_image(registry: &Registry, scratch: &Scratch) -> String {
    let busybox = run(Command::new("sh").args(["-c", "command -v busybox"]));
    let tree = scratch.path("busybox");
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(tree.join(directory)).expect("directory");
    }
    fs::copy(busybox.trim(), tree.join("bin/busybox")).expect("copy");
    fs::write(tree.join("etc/name"), "image\n").expect("write");
    let tar = scratch.path("busybox.tar");
    run(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."));
    let _: Vec<Digest> = node::put_image(registry, "busybox", &[&tar]);
    assert_eq!(registry.tags(REPOSITORY).len(), 1);
    node::index(registry, scratch, "busybox", "busybox-indexed")
}
