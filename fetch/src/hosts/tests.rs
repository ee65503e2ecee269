use super::*;

fn config(directories: Vec<PathBuf>, plain_http: PlainHttp) -> HostsConfig {
    HostsConfig { directories, plain_http, tls: TlsOptions::default() }
}

fn check(plain_http: PlainHttp, registry: &str, expected: &str) {
    let hosts = config(Vec::new(), plain_http).hosts(registry).unwrap();
    let bases: Vec<&str> = hosts.iter().map(|host| host.base.as_str()).collect();
    assert_eq!(bases, [expected], "{registry}");
}

#[test]
fn names_without_configuration() {
    check(PlainHttp::Localhost, "docker.io", "https://registry-1.docker.io/v2");
    check(PlainHttp::Localhost, "r.example:5000", "https://r.example:5000/v2");
    check(PlainHttp::Localhost, "localhost:5000", "http://localhost:5000/v2");
    check(PlainHttp::Localhost, "127.0.0.9:5000", "http://127.0.0.9:5000/v2");
    check(PlainHttp::Localhost, "[::1]:5000", "http://[::1]:5000/v2");
    check(PlainHttp::Localhost, "[::2]:5000", "https://[::2]:5000/v2");
    check(PlainHttp::Localhost, "localhost.example", "https://localhost.example/v2");
    check(PlainHttp::Everywhere, "r.example", "http://r.example/v2");
}

#[test]
fn directories_are_found_by_every_name() {
    for (name, registry, found) in [
        ("r.example", "r.example", true),
        ("r.example_5000_", "r.example:5000", true),
        ("r.example:5000", "r.example:5000", true),
        ("r.example", "r.example:5000", false),
        ("_default", "other.example", true),
        ("[::1]_5000_", "[::1]:5000", true),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), "[host.\"http://m.example\"]").unwrap();
        let directories = vec![root.path().join("absent"), root.path().to_owned()];
        let hosts = config(directories, PlainHttp::Localhost).hosts(registry).unwrap();
        assert_eq!(hosts.len(), if found { 2 } else { 1 }, "{name} {registry}");
    }
}

#[test]
fn older_layout_of_docker() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("localhost:5000");
    std::fs::create_dir(&dir).unwrap();
    for name in ["ca.crt", "me.cert", "me.key", "README"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    let config = config(vec![root.path().to_owned()], PlainHttp::Localhost);
    let hosts = config.hosts("localhost:5000").unwrap();
    let tls = &hosts[0].tls;
    assert_eq!(tls.ca_files, [dir.join("ca.crt")]);
    assert_eq!(tls.client_pairs, [(dir.join("me.cert"), dir.join("me.key"))]);
    assert_eq!(hosts[0].base.scheme(), "https", "certificates mean TLS, also for localhost");
    std::fs::remove_file(dir.join("me.key")).unwrap();
    let error = config.hosts("localhost:5000").unwrap_err().to_string();
    assert!(error.contains("without its key"), "{error}");
}

#[test]
fn urls_carry_the_namespace_on_mirrors_alone() {
    let host = |base: &str, registry: &str| {
        let options = HostOptions { base: base.parse().unwrap(), ..hub() };
        Host::new(options, registry, &Arc::default(), Duration::from_secs(1))
    };
    let query = [("n".to_owned(), "1".to_owned())];
    let mirror = host("https://m.example/v2", "docker.io");
    assert_eq!(
        mirror.url("a/b/manifests/t", &query).as_str(),
        "https://m.example/v2/a/b/manifests/t?n=1&ns=docker.io"
    );
    let origin = host("https://registry-1.docker.io/v2", "docker.io");
    assert_eq!(origin.url("x", &[]).as_str(), "https://registry-1.docker.io/v2/x");
    assert!(origin.is_origin() && !mirror.is_origin());
    assert!(host("http://localhost:5000/v2", "localhost:5000").is_origin());
}

fn hub() -> HostOptions {
    config(Vec::new(), PlainHttp::Localhost).origin("docker.io", TlsOptions::default()).unwrap()
}
