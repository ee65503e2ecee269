use super::*;
use proptest::prelude::*;

const HASH: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn check(text: &str, expected: &str) {
    match text.parse::<Reference>() {
        Ok(found) => assert_eq!(found.to_string(), expected, "{text}"),
        Err(error) => assert_eq!(error.to_string(), expected, "{text}"),
    }
}

#[test]
fn names_are_completed_as_docker_does() {
    check("alpine", "docker.io/library/alpine:latest");
    check("alpine:3.20", "docker.io/library/alpine:3.20");
    check("docker.io/alpine", "docker.io/library/alpine:latest");
    check("index.docker.io/alpine", "docker.io/library/alpine:latest");
    check("library/alpine", "docker.io/library/alpine:latest");
    check("me/app", "docker.io/me/app:latest");
    check("localhost/app", "localhost/app:latest");
    check("localhost:5000/app", "localhost:5000/app:latest");
    check("localhost:5000/a/b/c:v1", "localhost:5000/a/b/c:v1");
    check("[::1]:5000/app:v1", "[::1]:5000/app:v1");
    check("[2001:db8::1]/app", "[2001:db8::1]/app:latest");
    check("ghcr.io/o-w-n/a__b.c---d", "ghcr.io/o-w-n/a__b.c---d:latest");
    check("Registry/app", "Registry/app:latest");
    check(&format!("alpine@{HASH}"), &format!("docker.io/library/alpine@{HASH}"));
    check(&format!("h:1/a:t@{HASH}"), &format!("h:1/a:t@{HASH}"));
    check("alpine:T_a.g-1", "docker.io/library/alpine:T_a.g-1");
}

#[test]
fn errors_say_what_is_wrong() {
    let starts = |text: &str, expected: &str| {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    };
    starts("", "image reference is empty");
    starts("https://h/a", "image reference \"https://h/a\" begins with a scheme");
    starts(&"a".repeat(64), "\"aaaa");
    starts("h.x/Alpine", "repository \"Alpine\" of the image reference: \"Alpine\"");
    starts("Alpine", "repository \"library/Alpine\"");
    starts("a//b", "repository \"a//b\" of the image reference: \"\"");
    starts("a___b", "repository");
    starts("a..b", "repository");
    starts("-a", "repository");
    starts("a-", "repository");
    starts("a:", "tag \"\"");
    starts("a:-x", "tag \"-x\"");
    starts(&format!("a:{}", "x".repeat(129)), "tag");
    starts("a@sha256:12", "digest \"sha256:12\"");
    starts("h:port/a", "host \"h:port\"");
    starts("h:99999/a", "host");
    starts("h:/a", "host");
    starts("[::1/a", "host");
    starts("[zz]:1/a", "host");
    starts("-h.x/a", "host");
    starts(":5000/a", "host");
    starts("h.x/", "repository");
    starts(&format!("h.x/{}", "a".repeat(252)), "image name has 256 characters");
}

proptest! {
    #[test]
    fn whatever_parses_is_a_fixed_point(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}") {
        let _ = text.parse::<Reference>();
    }
}
