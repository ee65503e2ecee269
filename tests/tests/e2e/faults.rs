//! What goes wrong between a mount and its registry: the reader gets the right bytes or an error,
//! within its deadline, and the mount goes on.

use std::fs;
use std::time::{Duration, Instant};

use spanfs_registry::{Auth, Bearer, Credentials, Fault, Faults, Nth, Redirect, Registry, Rule};

use crate::node::{self, Node, REPOSITORY};
use crate::peers::able;
use crate::scratch::Scratch;
use crate::trees::{self, look};

/// No reader waits longer than this for bytes or an error, whatever the registry does.
const ANSWER_MAX: Duration = Duration::from_secs(120);

#[test]
fn faults_that_pass_cost_time_alone() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let blob = format!("/blobs/{}", node.layer);
    let seeded = |fault: Fault| Faults::seeded(7, 300, blob.clone(), &[fault]);
    let first =
        |len: u64, fault: Fault| Faults::script([Rule::get(blob.clone(), Nth::First(len), fault)]);
    let second = Duration::from_secs(1);
    let cases: Vec<(&str, Faults)> = vec![
        ("500", seeded(Fault::Status(500))),
        ("503", first(3, Fault::Status(503))),
        ("429", first(2, Fault::TooManyRequests { retry_after: second })),
        ("reset at once", seeded(Fault::Reset { after: 0 })),
        ("reset in the middle", seeded(Fault::Reset { after: 10_000 })),
        ("closed early", seeded(Fault::Close { after: 10_000 })),
        ("truncated", seeded(Fault::Truncate { len: 10_000 })),
        ("flipped bit", seeded(Fault::Flip { at: 5_000 })),
        ("stall", first(2, Fault::Stall { after: 10_000 })),
        ("late", first(2, Fault::Late { by: second })),
        ("slow loris", first(1, Fault::Drip { bytes: 100, every: Duration::from_millis(50) })),
        ("wrong Content-Range", first(2, Fault::WrongContentRange)),
        (
            "whole blob for a range",
            Faults::script([Rule::get(blob.clone(), Nth::Every, Fault::WholeForRange)]),
        ),
        ("401", first(1, Fault::Status(401))),
    ];
    for (name, faults) in cases {
        for options in [&["--front", "erofs"][..], &["--front", "inode", "--no-background"]] {
            node.registry.set_faults(faults.clone());
            let start = Instant::now();
            let root = node.mount(options);
            trees::assert_same(&node.expected, &look(&root));
            let took = start.elapsed();
            assert!(took < ANSWER_MAX, "{name}: {took:?}");
            assert!(name != "429" || took >= second, "Retry-After ignored: {took:?}");
            node.scratch.umount();
            node.scratch.forget();
        }
    }
}

#[test]
fn redirects_that_expire_or_break_are_asked_for_again() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let lifetime = Duration::from_millis(400);
    node.registry.set_redirect(Some(Redirect { lifetime, host: None }));
    let blob = format!("/blobs/{}", node.layer);
    for (name, fault) in [
        ("none", None),
        ("an expired redirect", Some((Nth::First(2), Fault::ExpiredRedirect))),
        ("a loop", Some((Nth::First(1), Fault::RedirectLoop))),
    ] {
        let rules = fault.map(|(nth, fault)| Rule::get(blob.clone(), nth, fault));
        node.registry.set_faults(Faults::script(rules));
        let root = node.mount(&["--no-background"]);
        let files = |from: usize| (from..40).step_by(2).map(|n| root.join(format!("data/{n:02}")));
        for path in files(0) {
            fs::read(&path).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
        }
        // every URL that was given out is now worthless
        std::thread::sleep(lifetime * 2);
        for path in files(1) {
            fs::read(&path).unwrap_or_else(|e| panic!("{name}: {}: {e}", path.display()));
        }
        trees::assert_same(&node.expected, &look(&root));
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn faults_that_stay_are_an_error_and_leave_the_mount_alive() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let blob = format!("/blobs/{}", node.layer);
    for fault in [
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(500),
        Fault::Reset { after: 0 },
        Fault::Flip { at: 0 },
        Fault::WrongContentRange,
        Fault::RedirectLoop,
        Fault::Stall { after: 0 },
        Fault::TooManyRequests { retry_after: Duration::from_secs(3600) },
    ] {
        let name = format!("{fault:?}");
        let root = node.mount(&["--no-background"]);
        node.registry.set_faults(Faults::script([Rule::get(blob.clone(), Nth::Every, fault)]));
        let start = Instant::now();
        let error = fs::read(root.join("data/39")).expect_err(&name);
        let took = start.elapsed();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{name}");
        assert!(took < ANSWER_MAX, "{name}: EIO after {took:?}");
        let log = node.log();
        assert!(log.contains(&node.layer.to_string()), "{name}: no layer in the log: {log}");

        node.registry.set_faults(Faults::none());
        let end = Instant::now() + ANSWER_MAX;
        while let Err(error) = fs::read(root.join("data/39")) {
            assert!(Instant::now() < end, "{name}: still {error} with a registry that is well");
            std::thread::sleep(Duration::from_millis(200));
        }
        trees::assert_same(&node.expected, &look(&root));
        node.scratch.umount();
        node.scratch.forget();
    }
}

#[test]
fn documents_that_are_missing_or_changed_are_named() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    let documents = node.documents();
    // 3: not found, 5: corrupt; the SOCI index alone can be done without
    for (what, digest, codes) in [
        ("index of images", documents.top, Some((3, 5))),
        ("manifest", documents.image, Some((3, 5))),
        ("config", documents.config, Some((3, 5))),
        ("SOCI index", documents.soci, None),
        ("zTOC", documents.ztoc, Some((3, 5))),
    ] {
        // the first of them is asked for by its tag
        let (path, named) = match what {
            "index of images" => ("/manifests/indexed".to_owned(), "indexed".to_owned()),
            _ => (digest.to_string(), digest.to_string()),
        };
        for fault in [Fault::Status(404), Fault::Flip { at: 20 }, Fault::Truncate { len: 20 }] {
            let name = format!("{what}, {fault:?}");
            let missing = fault == Fault::Status(404);
            let rule = Rule { method: None, path: path.clone(), nth: Nth::Every, fault };
            node.registry.set_faults(Faults::script([rule]));
            let start = Instant::now();
            let output = node.try_mount();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(start.elapsed() < ANSWER_MAX, "{name}: {said}");
            assert!(said.contains(&named), "{name}: {said}");
            match codes {
                Some((gone, corrupt)) => {
                    let code = if missing { gone } else { corrupt };
                    assert_eq!(output.status.code(), Some(code), "{name}: {said}");
                }
                None => {
                    assert!(output.status.success(), "{name}: {said}");
                    trees::assert_same(&node.expected, &look(&node.scratch.path("mnt")));
                    node.scratch.umount();
                }
            }
            node.scratch.forget();
        }
    }
}

#[test]
fn mirrors_that_are_dead_or_lie_are_left_for_the_next() {
    if !able(&[], true) {
        return;
    }
    let node = Node::new();
    // The same image, byte for byte.
    let mirror = Registry::builder().start().expect("registry");
    node::put_image(&mirror, "plain", &[&node.scratch.path("layer.tar")]);
    node::index(&mirror, &node.scratch, "plain", "indexed");
    assert_eq!(mirror.tags(REPOSITORY), node.registry.tags(REPOSITORY));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let dead = dead.expect("a port that nobody listens at");
    let host = node.registry.addr().to_string();
    let hosts = node.scratch.path("hosts");
    fs::create_dir_all(hosts.join(&host)).expect("directory");
    let toml = format!(
        "server = \"http://{host}\"\n[host.\"http://{dead}\"]\n[host.\"http://{}\"]\n",
        mirror.addr()
    );
    fs::write(hosts.join(&host).join("hosts.toml"), toml).expect("write");
    let hosts = hosts.to_str().expect("text").to_owned();
    let blob = format!("/blobs/{}", node.layer);
    for (name, fault) in [
        ("sound", None),
        ("lying", Some(Fault::Flip { at: 100 })),
        ("broken", Some(Fault::Status(500))),
        ("without the blob", Some(Fault::Status(404))),
        ("forbidden", Some(Fault::Status(403))),
    ] {
        mirror.reset_stats();
        node.registry.reset_stats();
        let rules = fault.clone().map(|fault| Rule::get(blob.clone(), Nth::Every, fault));
        mirror.set_faults(Faults::script(rules));
        let start = Instant::now();
        let root = node.mount(&["--hosts-dir", &hosts]);
        trees::assert_same(&node.expected, &look(&root));
        assert!(start.elapsed() < ANSWER_MAX, "{name}: {:?}", start.elapsed());
        node.scratch.umount();
        node.scratch.forget();
        assert!(mirror.stats().bytes_sent > 0, "{name}: the mirror was never asked");
        let origin = node.registry.stats().bytes_sent;
        assert_eq!(
            origin > 1 << 20,
            fault.is_some(),
            "{name}: {origin} bytes came from the origin"
        );
    }
}

#[test]
fn tokens_that_die_are_renewed_while_somebody_reads() {
    if !able(&[], true) {
        return;
    }
    let bearer =
        Bearer { lifetime: Duration::from_secs(1), ..Bearer::new(Credentials::new("u", "p")) };
    let registry = Registry::builder().auth(Auth::Bearer(bearer)).start().expect("registry");
    let scratch = Scratch::new();
    let auth = serde_json::json!({"auths": {registry.addr().to_string(): {"auth": "dTpw"}}});
    fs::create_dir_all(scratch.path("docker")).expect("directory");
    fs::write(scratch.path("docker/config.json"), auth.to_string()).expect("write");
    let node = Node::with(registry, scratch);
    let root = node.mount(&["--no-background"]);
    for number in 0..8 {
        fs::read(root.join(format!("data/{:02}", number * 5))).expect("a token that lives");
        match number % 2 {
            0 => node.registry.revoke_tokens(),
            _ => std::thread::sleep(Duration::from_millis(600)),
        }
    }
    trees::assert_same(&node.expected, &look(&root));
    // With the login gone too, what is here stays, and what is not is an error.
    node.scratch.umount();
    node.scratch.forget();
    let root = node.mount(&["--no-background"]);
    fs::read(root.join("data/01")).expect("a token that lives");
    fs::remove_file(node.scratch.path("docker/config.json")).expect("remove");
    node.registry.set_faults(Faults::script([Rule::get("/token", Nth::Every, Fault::Status(401))]));
    node.registry.revoke_tokens();
    let start = Instant::now();
    fs::read(root.join("data/39")).expect_err("nobody lets us in");
    assert!(start.elapsed() < ANSWER_MAX, "{:?}", start.elapsed());
    fs::read(root.join("data/01")).expect("what is here");
    node.scratch.umount();
}
