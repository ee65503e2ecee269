//! The fuzz targets on damaged golden inputs, from a fixed seed: short, but the same on every run.

use std::fs;

use spanfs_tests::fuzz::TARGETS;

use crate::peers::fixture;

/// Golden inputs a target begins with.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files = |dir: &str, suffix: &str, most: usize| -> Vec<Vec<u8>> {
        let mut paths: Vec<_> = fs::read_dir(fixture(dir))
            .expect("fixtures")
            .map(|entry| entry.expect("entry").path())
            .filter(|path| path.to_str().is_some_and(|path| path.ends_with(suffix)))
            .collect();
        paths.sort();
        paths.truncate(most);
        assert!(!paths.is_empty(), "no {suffix} in {dir}");
        paths.iter().map(|path| fs::read(path).expect("readable")).collect()
    };
    match target {
        "gzip" | "gzip_ahead" => files("layers", ".tar.gz", 40),
        "tar" => files("layers", ".tar", 40),
        "ztoc" | "zinfo" => files("ztoc", "512b.ztoc", 40),
        "index" => files("images/v2/blobs/sha256", "", 40),
        "erofs_reader" => vec![tree_index()],
        "range_reply" => vec![
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/20\r\nContent-Length: 5\r\n\r\n"
                .to_vec(),
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"x\"\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 7\r\n\r\n".to_vec(),
        ],
        "hosts_toml" => vec![
            b"server = \"https://a.test\"\n[host.\"https://m.test\"]\ncapabilities = [\"pull\"]\n\
              ca = \"ca.pem\"\nskip_verify = true\ndial_timeout = \"3s\"\n\
              [host.\"https://m.test\".header]\nx = [\"a\", \"b\"]\n"
                .to_vec(),
        ],
        "docker_config" => vec![
            br#"{"auths":{"a.test":{"auth":"dTpodW50ZXIy"},"b.test":{"username":"u","password":"hunter2"}},"credHelpers":{"c.test":"x"},"credsStore":"y"}"#
                .to_vec(),
        ],
        "fuse_request" => fuse_requests(),
        other => panic!("no seeds for {other}"),
    }
}

/// INIT, LOOKUP, READ and READDIRPLUS as `/dev/fuse` gives them and as an io_uring slot holds them.
fn fuse_requests() -> Vec<Vec<u8>> {
    let window = [&[0; 8][..], &4096u64.to_ne_bytes(), &512u32.to_ne_bytes(), &[0; 20]].concat();
    let init = [7u32, 45, 131_072, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat();
    let requests = [
        (26u32, 1u64, init, Vec::new()),
        (1, 1, Vec::new(), b"layer\0".to_vec()),
        (15, 2, window.clone(), Vec::new()),
        (44, 1, window, Vec::new()),
    ];
    let forms = requests.map(|(opcode, node, operation, payload)| {
        let len = (40 + operation.len() + payload.len()) as u32;
        let mut header = [len, opcode].map(u32::to_ne_bytes).concat();
        header.extend([9u64, node, 0, 0].map(u64::to_ne_bytes).concat());
        let by_device = [&header[..], &operation, &payload].concat();
        let mut slot = header;
        slot.resize(128, 0);
        slot.extend(operation);
        slot.resize(264, 0);
        slot.extend(77u64.to_ne_bytes());
        slot.extend((payload.len() as u64).to_ne_bytes());
        slot.resize(288, 0);
        slot.extend(payload);
        [by_device, slot]
    });
    forms.into_iter().flatten().collect()
}

fn tree_index() -> Vec<u8> {
    use spanfs_layer::{erofs, tar, tree};
    let bytes = fs::read(fixture("layers/mix-tar.tar")).expect("fixture");
    let (mut reader, mut records) = (tar::Reader::new(tar::Limits::default()), Vec::new());
    reader.feed(&bytes, &mut records).expect("a good tar");
    let mut builder = tree::TreeBuilder::new(tree::TreeOptions::default());
    records.iter().for_each(|record| builder.push(record).expect("a good record"));
    let tree = builder.finish().expect("a good tree");
    let device = erofs::Device { tag: b"seed", len: bytes.len().next_multiple_of(512) as u64 };
    erofs::write(&tree, &[device]).expect("an index").bytes
}

/// Flips, cuts, copies and overwrites: what libFuzzer's simplest mutators do.
fn damage(bytes: &mut Vec<u8>, mut next: impl FnMut() -> usize) {
    for _ in 0..1 + next() % 4 {
        if bytes.is_empty() {
            return;
        }
        let at = next() % bytes.len();
        match next() % 6 {
            0 => bytes[at] ^= 1 << (next() % 8),
            1 => bytes[at] = [0, 0xff, 0x7f, 0x80, b'0', b'9'][next() % 6],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + next() % 64).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = next() % bytes.len();
                bytes.splice(to..to, copy);
            }
            4 => {
                let end = (at + next() % 64).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let number = (next() as u32).to_le_bytes();
                let end = (at + 4).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
        }
    }
}

#[test]
fn damaged_inputs_keep_every_property() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        let mut state = 0x5EED_0000_u64 + name.len() as u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        for seed in &seeds {
            target(seed);
            for _ in 0..600 / seeds.len().max(1) {
                let mut bytes = seed.clone();
                damage(&mut bytes, &mut next);
                let shown = bytes.clone();
                let outcome = std::panic::catch_unwind(|| target(&bytes));
                assert!(outcome.is_ok(), "{name} fails on {} bytes: {shown:02x?}", shown.len());
            }
        }
    }
}
