//! Containers that outlive the daemon: it is killed and restarted again and again under them.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::process::Signal;
use spanfs_registry::{Link, Registry};

use crate::ctr::Ctr;
use crate::image::noise;
use crate::lazy::{FILES, assert_lazy, image, pull_by_cri};
use crate::node::{DAEMON_SOCKET, Node, PATIENCE, Setup};
use crate::process::{run_for, wait_for};
use crate::versions::{Version, on_each_containerd, soak};

on_each_containerd!(containers_outlive_the_daemon, what_is_here_outlives_daemon_and_holder);

const READERS: u64 = 4;
const ROUNDS: u32 = 8;
/// Ten minutes.
const ROUNDS_SOAK: u32 = 120;
const EVERY: Duration = Duration::from_millis(1500);
const EVERY_SOAK: Duration = Duration::from_secs(5);
/// A daemon that is gone for a moment, not at all, or for longer.
const GAPS_MS: [u64; 3] = [50, 0, 700];

fn containers_outlive_the_daemon(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/survive", "v2");
    let config = "[background_fetch]\n  disable = true\n";
    let node = Node::start(&Setup { config, ..Setup::of(version) });
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    // What is read is on its way whenever the daemon dies: 24 MB take all of the test, or the first part of
    // the long version. A link that is slower still looks stalled, and nothing comes at all.
    let (rounds, every) = if soak() { (ROUNDS_SOAK, EVERY_SOAK) } else { (ROUNDS, EVERY) };
    let time = every.as_secs_f64() * f64::from(rounds);
    let bytes_per_second = ((FILES << 20) as f64 / time).max(1e6) as u64;
    registry.set_link(Link { bytes_per_second: Some(bytes_per_second), ..Link::UNLIMITED });

    let ctr = node.within("k8s.io");
    ctr.try_run(&["--detach"], &reference, "lives", &["/bin/sleep", "100000"]).expect("it starts");
    let name = node.named("lives");
    let root = node
        .root()
        .join(format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{name}/rootfs"));
    let readers = Readers::default();
    let layers = layer_files(&node);
    assert_eq!(layers.len(), 2, "{layers:?}");
    std::thread::scope(|scope| {
        let stopped = readers.stop_at_end();
        for reader in 0..READERS {
            let (readers, root) = (&readers, &root);
            scope.spawn(move || readers.read(reader, root));
        }
        scope.spawn(|| readers.drop_pages(&layers));
        for round in 0..rounds {
            std::thread::sleep(every);
            readers.wait_for_progress();
            let is_planned = round % 3 == 2;
            node.stop_daemon(if is_planned { Signal::TERM } else { Signal::KILL });
            std::thread::sleep(Duration::from_millis(GAPS_MS[round as usize % 3]));
            // A container is wanted on the node just now.
            let mut start = start_one(&node, &reference, round);
            let started = scope.spawn(move || run_for(&mut start, PATIENCE));
            node.start_daemon();
            let started = started.join().expect("it ends");
            assert_eq!(started.stdout, "small", "round {round}: {started:?}");
            readers.wait_for_progress();
        }
        drop(stopped);
    });
    let errors = readers.errors.into_inner().expect("no panic");
    assert_eq!(errors, Vec::<String>::new());
    eprintln!(
        "{} reads, the longest took {} ms, over {rounds} ends of the daemon",
        readers.count.load(Ordering::Relaxed),
        readers.longest_us.load(Ordering::Relaxed) / 1000
    );
    let ctr = node.within("k8s.io");
    let tasks = ctr.ctr(&["tasks", "ls"]);
    assert!(tasks.lines().any(|line| line.contains(&name) && line.contains("RUNNING")), "{tasks}");
    registry.set_link(Link::UNLIMITED);
    node.wait_for_reconnection();
    end(&ctr, &name);
    ctr.remove(&ctr.images());
    assert_lazy(&node, 0);
    assert!(node.directories().is_empty(), "{:?}", node.directories());
}

/// A container whose image has come reads on with nobody left of us, though it began before.
fn what_is_here_outlives_daemon_and_holder(version: Version) {
    let registry = Registry::builder().start().expect("a registry");
    let (reference, _) = image().push_indexed(&registry, "test/alone", "v2");
    let node = Node::start(&Setup::of(version));
    pull_by_cri(&node, &reference);
    assert_lazy(&node, 2);
    let one_files = layer_files(&node);
    let ctr = node.within("k8s.io");
    ctr.try_run(&["--detach"], &reference, "alone", &["/bin/sleep", "100000"]).expect("it starts");
    let name = node.named("alone");
    let root = node
        .root()
        .join(format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{name}/rootfs"));
    let read_all = || (0..FILES).try_for_each(|number| read_cold(&root, number));
    let exec = |id| ctr.ctr(&["tasks", "exec", "--exec-id", id, &name, "/bin/cat", "/app/data"]);
    assert_eq!(exec("first"), "small");
    read_all().expect("all is served");
    // What has come is led past us behind the answer to who waited for it. The programs came first; not all of
    // them are read, so their layer gives no such sign.
    wait_for("that the large layer is read past us", PATIENCE, || {
        let layers = layers(&node);
        let large = layers.as_array()?.iter().find(|layer| layer["position"] == 1)?;
        (large["past_us"] == 100).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    for file in &one_files {
        rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("advice");
    }
    drop(one_files);
    node.stop_daemon(Signal::KILL);
    let killed = node.run("sh", &["-c", KILL_HOLDERS]);
    assert!(killed.status.success(), "no holder ran: {killed:?}");
    read_all().expect("nobody is needed");
    assert_eq!(exec("second"), "small");
    node.start_daemon();
    read_all().expect("nobody is asked");
    node.wait_for_reconnection();
    end(&ctr, &name);
    ctr.remove(&ctr.images());
    assert_lazy(&node, 0);
    assert!(node.directories().is_empty(), "{:?}", node.directories());
}

/// What the daemon tells of its layers.
fn layers(node: &Node) -> serde_json::Value {
    let socket = node.path(DAEMON_SOCKET).with_extension("debug.sock");
    let mut stream = UnixStream::connect(socket).expect("the debug socket");
    stream.write_all(b"GET /debug/layers HTTP/1.0\r\n\r\n").expect("a request");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    let (_, body) = reply.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).expect("JSON")
}

/// In the node, whose processes are numbered apart.
const KILL_HOLDERS: &str = r#"
found=1
for process in /proc/[0-9]*; do
    [ "$(readlink "$process/exe" | sed 's:.*/::')" = spanfs-hold ] || continue
    kill -9 "${process#/proc/}" && found=0
done
exit $found"#;

/// A file of the large layer, past what the kernel kept of it.
fn read_cold(root: &Path, number: u64) -> Result<(), String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let file = std::fs::File::open(root.join(format!("data/{number}")))?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        let mut bytes = vec![0; 1 << 20];
        file.read_exact_at(&mut bytes, 0)?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes == noise(number, 1 << 20) => Ok(()),
        Ok(_) => Err(format!("wrong bytes in file {number}")),
        Err(error) => Err(format!("file {number}: {error}")),
    }
}

fn end(ctr: &Ctr<'_>, name: &str) {
    ctr.ctr(&["tasks", "rm", "--force", name]);
    ctr.ctr(&["containers", "rm", name]);
}

/// Starts a container as a kubelet does: again, until it runs.
fn start_one(node: &Node, image: &str, round: u32) -> Command {
    let name = node.named(&format!("round-{round}"));
    let script = r#"
i=0
until ctr --namespace k8s.io run --rm --snapshotter soci --cgroup "/$2-$i" "$1" "$2-$i" /bin/cat /app/data; do
    i=$((i + 1))
    [ $i -lt 200 ] || exit 1
    sleep 0.1
done"#;
    let mut command = node.enter("sh");
    command.args(["-c", script, "sh", image, &name]);
    command
}

/// The one-file mounts' files, opened on the node.
fn layer_files(node: &Node) -> Vec<std::fs::File> {
    let mounts = node.mounts();
    let places = mounts.iter().filter(|(_, kind, _)| kind == "fuse.rawBridge");
    let path = |(place, ..): &(String, String, String)| {
        node.root().join(place.trim_start_matches('/')).join("layer")
    };
    places.map(|it| std::fs::File::open(path(it)).expect("it is served")).collect()
}

/// Readers in a container's root that compare every byte, and see to it that the daemon is asked.
#[derive(Default)]
struct Readers {
    stop: AtomicBool,
    count: AtomicU64,
    longest_us: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// Ends readers, also when a test fails.
struct Stopped<'a>(&'a Readers);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Readers {
    fn stop_at_end(&self) -> Stopped<'_> {
        Stopped(self)
    }

    fn read(&self, reader: u64, root: &Path) {
        let mut state = reader + 1;
        while !self.stop.load(Ordering::Relaxed) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let number = (state >> 33) % FILES;
            if let Err(error) = self.compare(&root.join(format!("data/{number}")), number, state) {
                self.errors.lock().expect("no panic").push(error);
                return;
            }
        }
    }

    fn compare(&self, path: &Path, number: u64, state: u64) -> Result<(), String> {
        let failed =
            |what: &str, error: std::io::Error| format!("{what} {}: {error}", path.display());
        let expected = noise(number, 1 << 20);
        let mut buffer = vec![0; 128 << 10];
        let offset = (state >> 17) as usize % (expected.len() - buffer.len());
        let file = std::fs::File::open(path).map_err(|error| failed("open", error))?;
        let start = Instant::now();
        file.read_exact_at(&mut buffer, offset as u64).map_err(|error| failed("read", error))?;
        let took = start.elapsed().as_micros() as u64;
        self.longest_us.fetch_max(took, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
        match buffer == expected[offset..offset + buffer.len()] {
            true => Ok(()),
            false => Err(format!("wrong bytes at {offset} of {}", path.display())),
        }
    }

    /// Empty the page cache of the layer files, again and again.
    fn drop_pages(&self, layers: &[std::fs::File]) {
        while !self.stop.load(Ordering::Relaxed) {
            for layer in layers {
                rustix::fs::fadvise(layer, 0, None, Advice::DontNeed).expect("advice");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_progress(&self) {
        let before = self.count.load(Ordering::Relaxed);
        wait_for("readers to go on", PATIENCE, || {
            let errors = self.errors.lock().expect("no panic");
            assert!(errors.is_empty(), "{errors:?}");
            (self.count.load(Ordering::Relaxed) >= before + 2 * READERS).then_some(())
        });
    }
}
