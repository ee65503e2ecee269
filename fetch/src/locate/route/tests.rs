use super::*;
use proptest::prelude::*;

fn route(hosts: usize) -> Route {
    let facts = |index: usize| HostFacts {
        url: format!("https://h{index}.example/v2/a/blobs/d").parse().unwrap(),
        plain_allowed: false,
    };
    Route::new((0..hosts).map(facts).collect())
}

fn failure(status: u16, location: &str) -> TargetFailure {
    TargetFailure {
        id: 0,
        status: (status > 0).then_some(status),
        challenge: None,
        location: (!location.is_empty()).then(|| location.to_owned()),
        message: format!("answered {status}"),
    }
}

/// Feed failures, each of a target that was given just before, and tell where the route went.
fn check(hosts: usize, failures: &[(u16, &str)], expected: &[&str]) {
    let (mut route, now) = (route(hosts), Instant::now());
    let mut found = Vec::new();
    for (status, location) in failures {
        route.given(now);
        found.push(match route.failed(&failure(*status, location), now) {
            Ok(next) => {
                let url = route.place().1.unwrap();
                let renew = if next == Next::Renew { "renew " } else { "" };
                format!("{renew}{}", url.as_str().strip_prefix("https://").unwrap())
            }
            Err(error) => format!("{:?}", error.located("b")),
        });
    }
    assert_eq!(found, expected, "{failures:?}");
}

const H0: &str = "h0.example/v2/a/blobs/d";
const H1: &str = "h1.example/v2/a/blobs/d";

#[test]
fn redirects() {
    check(1, &[(307, "https://s.example/x")], &["s.example/x"]);
    check(1, &[(307, "/x"), (302, "y")], &["h0.example/x", "h0.example/y"]);
    check(
        1,
        &[(307, "http://s.example/x")],
        &["Refused(\"b: redirect from https to plain http \
        at s.example is refused\")"],
    );
    check(2, &[(307, "ftp://s.example/x")], &[H1]);
    check(1, &[(307, "")], &["Refused(\"b: answered 307\")"]);
    let (mut route, now) = (route(1), Instant::now());
    for _ in 0..REDIRECTS_MAX {
        assert_eq!(route.failed(&failure(302, "https://s.example/x"), now), Ok(Next::Go));
    }
    let error = route.failed(&failure(302, "https://s.example/x"), now).unwrap_err();
    assert_eq!(error, Exhausted(Verdict::Refused("more than 10 redirects".to_owned())));
}

#[test]
fn a_token_is_renewed_once() {
    let renewed = format!("renew {H0}");
    check(1, &[(401, ""), (401, "")], &[&renewed, "Refused(\"b: answered 401\")"]);
    check(2, &[(401, ""), (401, "")], &[&renewed, H1]);
    let (mut route, now) = (route(1), Instant::now());
    route.given(now);
    assert_eq!(route.failed(&failure(401, ""), now), Ok(Next::Renew));
    route.given(now);
    assert_eq!(route.failed(&failure(401, ""), now + QUICK), Ok(Next::Renew), "it worked a while");
}

#[test]
fn an_expired_url_sends_back_to_the_registry() {
    for status in [400, 401, 403, 404] {
        check(1, &[(307, "https://s.example/x"), (status, "")], &["s.example/x", H0]);
    }
    let around = [(307, "https://s.example/x"), (403, "")];
    let many: Vec<_> = around.iter().cycle().take(8).copied().collect();
    let refused = "Refused(\"b: answered 403\")";
    check(
        1,
        &many,
        &["s.example/x", H0, "s.example/x", H0, "s.example/x", H0, "s.example/x", refused],
    );
}

#[test]
fn a_broken_connection_is_first_tried_again() {
    let path = ["s.example/x", "s.example/x", H0];
    check(1, &[(307, "https://s.example/x"), (0, ""), (0, "")], &path);
}

#[test]
fn hosts_are_tried_in_turn() {
    check(2, &[(404, ""), (404, "")], &[H1, "Gone(\"b: answered 404\")"]);
    check(2, &[(404, ""), (403, "")], &[H1, "Refused(\"b: answered 403\")"]);
    check(2, &[(503, ""), (404, ""), (0, "")], &[H1, H0, H1]);
    check(1, &[(0, ""), (429, "")], &[H0, H0]);
    let mut route = route(2);
    route.pass_over(|index| index == 0);
    assert_eq!(route.place().0, 1);
    route.pass_over(|_| true);
    assert_eq!(route.place().0, 1, "the last host is never passed over");
}

proptest! {
    #[test]
    fn the_route_stays_among_its_hosts(
        hosts in 1_usize..4,
        failures in prop::collection::vec(
            (prop::sample::select(vec![0_u16, 200, 302, 307, 400, 401, 403, 404, 416, 429, 503]),
             prop::sample::select(vec!["", "/x", "https://s.example/y", "http://s/", "::"]),
             0_u64..4),
            0..60),
    ) {
        let (mut route, mut now) = (route(hosts), Instant::now());
        for (status, location, seconds) in failures {
            route.given(now);
            now += Duration::from_secs(seconds);
            let _ = route.failed(&failure(status, location), now);
            let (host, url) = route.place();
            prop_assert!(host < hosts);
            let url = url.unwrap();
            prop_assert_eq!(url.scheme(), "https");
            prop_assert!(route.verdicts.len() < hosts);
        }
    }
}
