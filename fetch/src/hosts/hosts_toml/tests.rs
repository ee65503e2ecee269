use super::*;
use crate::hosts::Capability;
use crate::trust::TlsOptions;
use proptest::prelude::*;

fn origin() -> HostOptions {
    HostOptions {
        base: "https://r.example/v2".parse().unwrap(),
        capabilities: Capabilities::ALL,
        tls: TlsOptions::default(),
        headers: HeaderMap::new(),
        dial_timeout: None,
    }
}

fn read(text: &str) -> Result<Vec<HostOptions>, String> {
    parse(text, Path::new("/etc/d"), origin())
}

#[test]
fn every_key_and_the_order_of_the_file() {
    let hosts = read(
        r#"
        server = "https://upstream.example"
        ca = "/abs/ca.crt"

        [host."https://z.example:8443"]
          capabilities = ["pull", "resolve"]
          ca = ["a.crt", "b.crt"]
          client = [["c.cert", "c.key"], ["both.pem", ""], ["x.pem"]]
          dial_timeout = "1m500ms"
        [host."http://a.example/v2/cache"]
          override_path = true
          skip_verify = true
          future_key = 1
          [host."http://a.example/v2/cache".header]
            x-token = "t"
            x-many = ["1", "2"]
        [host."m.example/prefix"]
          capabilities = ["pull", "dance"]
          client = "one.pem"
        "#,
    )
    .unwrap();
    let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
    assert_eq!(
        bases,
        [
            "https://z.example:8443/v2",
            "http://a.example/v2/cache",
            "https://m.example/prefix/v2",
            "https://upstream.example/v2"
        ]
    );
    let [z, a, m, server] = hosts.as_slice() else { panic!() };
    assert_eq!(z.tls.ca_files, [Path::new("/etc/d/a.crt"), Path::new("/etc/d/b.crt")]);
    let pair = |a: &str, b: &str| (PathBuf::from(a), PathBuf::from(b));
    assert_eq!(
        z.tls.client_pairs,
        [
            pair("/etc/d/c.cert", "/etc/d/c.key"),
            pair("/etc/d/both.pem", "/etc/d/both.pem"),
            pair("/etc/d/x.pem", "/etc/d/x.pem"),
        ]
    );
    assert_eq!(z.dial_timeout, Some(Duration::from_millis(60_500)));
    assert!(z.capabilities.has(Capability::Resolve) && z.capabilities.has(Capability::Referrers));
    assert!(!z.capabilities.has(Capability::Push));
    assert!(a.tls.skip_verify && a.capabilities == Capabilities::ALL);
    assert_eq!(a.headers.get_all("x-many").iter().count(), 2);
    assert!(a.headers["x-token"].is_sensitive());
    assert!(!m.capabilities.has(Capability::Resolve) && m.capabilities.has(Capability::Pull));
    assert_eq!(m.tls.client_pairs, [pair("/etc/d/one.pem", "/etc/d/one.pem")]);
    assert_eq!(server.tls.ca_files, [Path::new("/abs/ca.crt")]);
}

#[test]
fn an_empty_file_leaves_the_origin() {
    assert_eq!(read("").unwrap(), [origin()]);
}

#[test]
fn errors_name_the_key() {
    for (text, needle) in [
        ("server = 1", "`server` is not a text"),
        ("host = 1", "`host` is not a table"),
        ("host.x = 1", "\"x\" is not a table"),
        ("[host.\"ftp://x\"]", "scheme \"ftp\""),
        ("[host.\"https://u:hush@x\"]", "credentials do not belong"),
        ("[host.x]\nca = 1", "x: `ca` is not paths"),
        ("[host.x]\nclient = [[1]]", "`client` is not"),
        ("[host.x]\nclient = [[]]", "`client` is not"),
        ("[host.x]\nskip_verify = \"no\"", "`skip_verify` is not true or false"),
        ("[host.x]\ndial_timeout = \"soon\"", "`dial_timeout` is not a duration"),
        ("[host.x]\ncapabilities = \"pull\"", "`capabilities` is not a list"),
        ("[host.x.header]\n\"a b\" = \"1\"", "header name \"a b\""),
        ("[host.x.header]\na = 1", "header \"a\" is not"),
        ("[host.x.header]\na = \"h\\nush\"", "value of header \"a\" is not valid"),
        ("=", "not TOML"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(needle), "{text}: {error}");
    }
}

#[test]
fn durations() {
    for (text, expected) in [
        ("5s", Some(5_000)),
        ("1m30s", Some(90_000)),
        ("1.5h", Some(5_400_000)),
        ("5", None),
        ("", None),
        ("-5s", None),
        ("1d", None),
        ("99999999h", None),
        ("é", None),
    ] {
        assert_eq!(duration(text), expected.map(Duration::from_millis), "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "[\\PC\\n]{0,120}") {
        let _ = read(&text);
        let _ = duration(&text);
    }

    #[test]
    fn no_value_panics(key in "[a-z_]{1,14}", value in "[\\[\\]\"a-z0-9,. ]{0,20}") {
        let _ = read(&format!("[host.x]\n{key} = {value}"));
    }
}
