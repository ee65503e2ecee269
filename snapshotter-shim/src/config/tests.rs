use std::time::Duration;

use proptest::prelude::*;
use spanfs_mount::transport::Transport;

use super::*;

fn faults(text: &str) -> Vec<String> {
    let faults = Config::parse(text).map(|_| Faults(Vec::new())).unwrap_or_else(|faults| faults);
    faults.0.iter().map(|fault| Faults(vec![fault.clone()]).to_string()).collect()
}

fn settings(text: &str) -> Settings {
    Config::parse(text).unwrap().settings
}

#[test]
fn defaults_are_the_peers() {
    let settings = settings("");
    let retry = Retry {
        retries_max: 8,
        wait_min: Duration::from_millis(30),
        wait_max: Duration::from_secs(300),
    };
    assert_eq!((settings.request_retry, settings.blob_retry), (retry, retry));
    assert_eq!(settings.mount_timeout, Duration::from_secs(30));
    assert_eq!(settings.connect_timeout, Duration::from_secs(3));
    assert_eq!(settings.header_timeout, Duration::from_secs(3));
    assert_eq!(settings.request_timeout, Duration::from_secs(300));
    assert_eq!(settings.blob_timeout, Duration::from_secs(300));
    assert_eq!(settings.content_store, ContentStore::Soci);
    assert_eq!(settings.containerd, PathBuf::from("/run/containerd/containerd.sock"));
    assert_eq!(settings.pull_modes, PullModes { soci_v1: false, soci_v2: true, parallel: None });
    let background = settings.background_fetch.unwrap();
    assert_eq!(background.silence, Duration::from_secs(30));
    assert_eq!(
        (settings.metrics, settings.cri_image_service, settings.kubeconfig),
        Default::default()
    );
    assert!(settings.check_overlay);
}

#[test]
fn zero_and_nothing_mean_the_default_and_negative_no_limit() {
    let zeroes = "
        mount_timeout_sec = 0
        max_concurrency = 0
        metrics_network = ''
        [blob]
        fetching_timeout_sec = 0
        [background_fetch]
        max_queue_size = 0
        drop_policy = ''
        [content_store]
        type = ''
        containerd_address = ''
        [resolver]
        auth_client_ttl_sec = 0
    ";
    assert_eq!(settings(zeroes), settings(""));
    let negative = "
        max_concurrency = -1
        [http]
        MaxRetries = -1
        [blob]
        max_span_verification_retries = -1
        [background_fetch]
        max_queue_size = -1
        [resolver]
        auth_client_ttl_sec = -1
    ";
    let settings = settings(negative);
    assert_eq!(settings.request_retry.retries_max, 0);
    assert_eq!(settings.blob_retry.retries_max, 0, "[blob] follows [http]");
}

#[test]
fn blob_retries_follow_those_of_http_unless_given() {
    let settings = settings("[http]\nMaxRetries = 2\nMinWaitMsec = 7\n[blob]\nmax_retries = 5");
    assert_eq!(settings.blob_retry.retries_max, 5);
    assert_eq!(settings.blob_retry.wait_min, Duration::from_millis(7));
}

#[test]
fn values_mean_what_they_say() {
    let settings = settings(
        r#"
        metrics_address = "/run/m.sock"
        metrics_network = "unix"
        debug = true
        disable_verification = true
        [BLOB]
        Check_Always = true
        [background_fetch]
        disable = true
        [content_store]
        type = "containerd"
        containerd_address = "unix:///run/c.sock"
        [kubeconfig_keychain]
        enable_keychain = true
        [cri_keychain]
        enable_keychain = true
        [[resolver.host."r.example".mirrors]]
        host = "http://m.example:5000"
        insecure = true
        request_timeout_sec = -1
        [snapshotter]
        min_layer_size = 10485760
        [pull_modes.soci_v2]
        [pull_modes.parallel_pull_unpack]
        enable = true
        max_concurrent_downloads = 10
        concurrent_download_chunk_size = "1.5 MB"
        [pull_modes.parallel_pull_unpack.decompress_streams.gzip]
        path = "/usr/bin/unpigz"
        args = ["-d", "-c"]
        [spanfs]
        transport = "dev"
        enable_uring = true
        [spanfs.overlay]
        mount_options = ["volatile"]
        "#,
    );
    assert_eq!(settings.metrics, Some(Listen::Unix("/run/m.sock".into())));
    assert!(settings.pull_modes.soci_v2);
    assert_eq!((settings.transport, settings.enable_uring), (Some(Transport::Dev), true));
    assert_eq!(settings.background_fetch, None);
    assert_eq!(settings.containerd, PathBuf::from("/run/c.sock"));
    assert_eq!(settings.kubeconfig, Some(None));
    assert_eq!(settings.cri_image_service, Some("/run/containerd/containerd.sock".into()));
    let mirror =
        Mirror { host: "http://m.example:5000".into(), insecure: true, request_timeout: None };
    assert_eq!(settings.mirrors["r.example"], [mirror]);
    assert_eq!(settings.lazy_layer_len_min, 10 << 20);
    assert_eq!(settings.overlay_options, ["volatile"]);
    let parallel = settings.pull_modes.parallel.unwrap();
    assert_eq!((parallel.downloads_max, parallel.downloads_per_image_max), (Some(10), Some(3)));
    assert_eq!((parallel.unpacks_max, parallel.unpacks_per_image_max), (None, Some(1)));
    assert_eq!(parallel.chunk_len, Some(3 << 19));
    assert_eq!(parallel.programs["gzip"].args, ["-d", "-c"]);
}

#[test]
fn faults_name_line_and_neighbour() {
    let check = |text: &str, expected: &[&str]| assert_eq!(faults(text), expected, "{text}");
    check(
        "\n\nmax_concurency = 1",
        &["line 3: unknown key max_concurency, did you mean max_concurrency?"],
    );
    check(
        "[blob]\nmax_retry = 1\n[https]\nx = 1",
        &[
            "line 2: unknown key blob.max_retry, did you mean max_retries?",
            "line 3: unknown key https, did you mean http?",
        ],
    );
    check("[zzz]", &["line 1: unknown key zzz"]);
    check(
        "debug = 1\n[http]\nMaxRetries = '8'",
        &[
            "line 1: debug is integer, expected boolean",
            "line 3: http.MaxRetries is string, expected integer",
        ],
    );
    check("debug = true\nDebug = false", &["line 2: key Debug is given twice"]);
    check("max_concurrency = 1.5", &["line 1: max_concurrency is float, expected integer"]);
    check(
        "[resolver.host.x.mirrors]\nhost = 'y'",
        &["line 1: resolver.host.x.mirrors is table, expected array"],
    );
    assert!(faults("a = ")[0].starts_with("line 1: "), "{:?}", faults("a = "));
}

#[test]
fn values_that_cannot_be() {
    let check = |text: &str, expected: &str| assert_eq!(faults(text), [expected], "{text}");
    let parallel = |text: &str| {
        format!("[content_store]\ntype='containerd'\n[pull_modes.parallel_pull_unpack]\n{text}")
    };
    check("metadata_store = 'x'", "unknown metadata store type: x; must be db or db-multi");
    check(
        "[background_fetch]\ndrop_policy = 'x'",
        "background_fetch.drop_policy must be \"oldest\" or \"newest\", got \"x\"",
    );
    check(
        "[pull_modes.parallel_pull_unpack]\nenable = true",
        "parallel_pull_unpack mode requires containerd content store",
    );
    check(
        "[pull_modes.parallel_pull_unpack]\nexperimental_parallel_pull_as_fallback = true",
        "experimental_parallel_pull_as_fallback requires containerd content store",
    );
    check(
        &parallel("max_concurrent_downloads = 2"),
        "global download limit less than per-image download limit",
    );
    check(
        &parallel("max_concurrent_unpacks = 1\nmax_concurrent_unpacks_per_image = 2"),
        "global unpack limit less than per-image unpack limit",
    );
    check(&parallel("concurrent_download_chunk_size = '5 tb'"), "invalid size format: 5 tb");
    check(
        &parallel("[pull_modes.parallel_pull_unpack.decompress_streams.gzip]\npath = '/a;b'"),
        "pull_modes.parallel_pull_unpack.decompress_streams.gzip.path \"/a;b\": \
         path contains invalid characters",
    );
    check("mount_timeout_sec = -1", "mount_timeout_sec is -1, expected a time from 0 to 7 days");
    check(
        "[http]\nDialTimeoutMsec = 9223372036854775807",
        "http.DialTimeoutMsec is 9223372036854775807, expected a time from 0 to 7 days",
    );
    check(
        "[http]\nMinWaitMsec = 500000\n[blob]\nmin_wait_msec = 1",
        "http.MinWaitMsec is 500000, more than the 300000 of http.MaxWaitMsec",
    );
    check(
        "[content_store]\ntype = 'x'",
        "content_store.type is \"x\", expected soci or containerd",
    );
    check("metrics_network = 'udp'", "metrics_network is \"udp\", expected tcp or unix");
    check(
        "[snapshotter]\nmin_layer_size = -1",
        "snapshotter.min_layer_size is -1, expected 0 or more",
    );
    check(
        "[[resolver.host.x.mirrors]]\nhost = 'm'",
        "resolver.host.\"x\".mirrors.host \"m\" has no scheme, such as https://",
    );
    check(
        "[spanfs.overlay]\nmount_options = ['upperdir=/']",
        "spanfs.overlay.mount_options: \"upperdir=/\" is not one option of the administrator's",
    );
    check(
        "[spanfs]\ncomplete_blobs = true",
        "spanfs.complete_blobs requires containerd content store",
    );
    check(
        "[content_store]\ntype = 'containerd'\n[background_fetch]\ndisable = true\n\
         [spanfs]\ncomplete_blobs = true",
        "spanfs.complete_blobs needs background_fetch, which is disabled",
    );
    check(
        "[spanfs]\nfront = 'fuse'",
        "spanfs.front is \"fuse\", expected auto or erofs or inode or files",
    );
    check(
        "[spanfs]\ntransport = 'fuse'",
        "spanfs.transport is \"fuse\", expected auto or dev or uring or fuse3",
    );
}

#[test]
fn the_background_has_a_cap_where_it_completes_blobs() {
    let check = |text: &str, expected: Option<u64>| {
        let text = format!("[content_store]\ntype = 'containerd'\n[spanfs]\n{text}");
        let settings = Config::parse(&text).unwrap().settings;
        assert_eq!(settings.background_bytes_per_second_max, expected, "{text}");
    };
    check("", None);
    check("background_bytes_per_second_max = 5", Some(5));
    check("complete_blobs = true", Some(128 << 20));
    check("complete_blobs = true\nbackground_bytes_per_second_max = 7", Some(7));
    check("complete_blobs = true\nbackground_bytes_per_second_max = -1", None);
}

#[test]
fn sizes_of_chunks() {
    let len = |size: &str| {
        let text = format!(
            "[content_store]\ntype='containerd'\n[pull_modes.parallel_pull_unpack]\nenable = true\n\
             concurrent_download_chunk_size = '{size}'"
        );
        Config::parse(&text).map(|c| c.settings.pull_modes.parallel.unwrap().chunk_len)
    };
    for (size, expected) in [
        ("", None),
        ("0", None),
        ("16mb", Some(16 << 20)),
        ("16 MB", Some(16 << 20)),
        ("0.5gb", Some(512 << 20)),
        ("7", Some(7)),
        ("7 b", Some(7)),
        ("2KB", Some(2048)),
    ] {
        assert_eq!(len(size), Ok(expected), "{size:?}");
    }
    for size in ["mb", "1m", "-1mb", "1..5mb", "1e30gb", "nanmb"] {
        assert!(len(size).is_err(), "{size:?}");
    }
}

#[test]
fn old_keys_are_warned_of_and_accepted() {
    let text = "allow_no_verification = true\nhttp_cache_type = 'memory'\nmetadata_store = 'db'\n\
                [content_store]\nnamespace = 'default'";
    let warnings = Config::parse(text).unwrap().warnings;
    let found: Vec<_> = warnings.iter().map(|w| (w.line, w.text.split(':').next())).collect();
    assert_eq!(
        found,
        [
            (1, Some("key allow_no_verification is no more")),
            (2, Some("key http_cache_type has no effect here")),
            (5, Some("key content_store.namespace is no more")),
        ]
    );
}

/// Another value than the default that the key can have.
fn other_value(key: &str, value: &toml::Value) -> toml::Value {
    let text = |text: &str| toml::Value::String(text.to_owned());
    match (key, value) {
        ("metrics_network", _) => text("unix"),
        ("metadata_store", _) => text("db-multi"),
        ("background_fetch.drop_policy", _) => text("oldest"),
        ("content_store.type", _) => text("containerd"),
        ("pull_modes.parallel_pull_unpack.concurrent_download_chunk_size", _) => text("3mb"),
        ("pull_modes.parallel_pull_unpack.max_concurrent_unpacks_per_image", _) => 2.into(),
        ("spanfs.front", _) => text("inode"),
        ("spanfs.transport", _) => text("dev"),
        ("http.MinWaitMsec", _) => 31.into(),
        (_, toml::Value::Boolean(value)) => (!value).into(),
        (_, toml::Value::Integer(value)) => (value + 7).into(),
        (_, toml::Value::String(_)) => text("/other"),
        (_, other) => panic!("{key} is {other}"),
    }
}

/// The keys of all tables that are always there, with their defaults.
fn keys(table: &toml::Table, path: &str, found: &mut Vec<(String, toml::Value)>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(table) => keys(table, &path, found),
            toml::Value::Array(_) => {}
            _ => found.push((path, value.clone())),
        }
    }
}

#[test]
fn each_key_has_an_effect_or_a_warning_that_it_has_none() {
    // What some keys need to mean anything.
    const AROUND: &str = "metrics_address = '127.0.0.1:1'\n[content_store]\ntype = 'containerd'\n\
        [kubeconfig_keychain]\nenable_keychain = true\n[cri_keychain]\nenable_keychain = true\n\
        [pull_modes.parallel_pull_unpack]\nenable = true\n\
        [spanfs.credential_providers]\nconfig = '/c'\nbin_dir = '/b'\n";
    let around = Config::parse(AROUND).unwrap();
    let mut found = Vec::new();
    keys(&toml::Table::try_from(&around.raw).unwrap(), "", &mut found);
    assert!(found.len() > 60, "{found:?}");
    for (key, value) in found {
        let mut table: toml::Table = AROUND.parse().unwrap();
        let mut at = &mut table;
        let mut parts: Vec<_> = key.split('.').collect();
        let last = parts.pop().unwrap();
        for part in parts {
            let below = at.entry(part).or_insert_with(|| toml::Table::new().into());
            at = below.as_table_mut().unwrap();
        }
        let other = match key.as_str() {
            // Already another one than the default.
            "content_store.type" => "soci".into(),
            _ => other_value(&key, &value),
        };
        at.insert(last.to_owned(), other);
        // These two exclude the mode itself.
        if key == "content_store.type" || last.ends_with("_as_fallback") {
            table["pull_modes"]["parallel_pull_unpack"]["enable"] = false.into();
        }
        let config = Config::parse(&table.to_string()).unwrap_or_else(|it| panic!("{key}: {it}"));
        let has_effect = config.settings != around.settings;
        let is_warned = config.warnings.iter().any(|it| it.text.contains(&format!("key {key} ")));
        assert!(has_effect != is_warned, "{key}: effect {has_effect}, warning {is_warned}");
    }
}

#[test]
fn a_dump_says_the_same_again() {
    let text = "no_prometheus = true\n[[resolver.host.'r.example:5000'.mirrors]]\nhost = 'https://a'\n\
                [[resolver.host.'r.example:5000'.mirrors]]\nhost = 'https://b'\n\
                [http]\nMaxRetries = 3\n[spanfs.overlay]\nmount_options = ['a', \"it's\"]";
    for text in ["", text] {
        let config = Config::parse(text).unwrap();
        let dumped = dump(&config.raw);
        assert_eq!(Config::parse(&dumped).unwrap(), config, "{dumped}");
    }
    let dumped = dump(&Config::parse("").unwrap().raw);
    assert!(dumped.starts_with("http_cache_type = ''\n"), "{dumped}");
    assert!(dumped.contains("\n[http]\n  DialTimeoutMsec = 3000\n"), "{dumped}");
    assert!(dumped.contains("\n  [pull_modes.soci_v2]\n    enable = true\n"), "{dumped}");
}

#[test]
fn files_that_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    assert_eq!(Config::read(&path, false).unwrap(), Config::parse("").unwrap());
    let error = Config::read(&path, true).unwrap_err();
    assert_eq!(error.to_string(), format!("failed to open config file {path:?}"));
    std::fs::write(&path, "nonsense").unwrap();
    let error = Config::read(&path, false).unwrap_err();
    assert_eq!(error.to_string(), format!("failed to load config file {path:?}"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z_.\\[\\]='\"0-9\n -]{0,80}") {
        if let Err(Faults(faults)) = Config::parse(&text) {
            prop_assert!(!faults.is_empty());
        }
    }
}
