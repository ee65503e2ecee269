//! `WWW-Authenticate`: what a server wants to see.
//!
//! Source: RFC 9110 §11.6.1. Several challenges may share one header, their parameters being separated
//! by the same comma as the challenges.

/// How to prove who one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scheme {
    Bearer,
    Basic,
    Other,
}

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: Scheme,
    /// Names in lower case, values unquoted.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Value of a parameter, by its lower-case name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// More than any server sends; a header is at most some tens of KiB.
const PARAMETERS_MAX: usize = 64;

/// Challenges of all headers, best first. What can't be parsed is left out: a server that sends
/// nothing usable is told by the empty list.
pub(crate) fn parse_challenges<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = headers.flat_map(|header| Parser(header).all()).collect();
    challenges.sort_by_key(|challenge| challenge.scheme);
    challenges
}

struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn all(mut self) -> Vec<Challenge> {
        let mut challenges: Vec<Challenge> = Vec::new();
        for _ in 0..PARAMETERS_MAX {
            self.skip(|c| c == ',' || c.is_whitespace());
            let word = self.take(is_token);
            if word.is_empty() {
                break;
            }
            let before = self.0;
            self.skip(char::is_whitespace);
            // `name =` continues the challenge, a bare word begins one. A token68 after a scheme, as in
            // `Negotiate YWJj==`, is taken for a parameter without value and does no harm.
            let parameter = self.0.strip_prefix('=').filter(|_| !challenges.is_empty());
            match (parameter, challenges.last_mut()) {
                (Some(rest), Some(challenge)) => {
                    self.0 = rest;
                    self.skip(char::is_whitespace);
                    let Some(value) = self.value() else { break };
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                _ => {
                    self.0 = before;
                    challenges.push(Challenge { scheme: scheme(word), parameters: Vec::new() });
                }
            }
        }
        challenges
    }

    fn value(&mut self) -> Option<String> {
        let Some(rest) = self.0.strip_prefix('"') else {
            return Some(self.take(|c| c != ',' && !c.is_whitespace()).to_owned());
        };
        let mut value = String::new();
        let mut chars = rest.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(chars.next()?),
                other => value.push(other),
            }
        }
        self.0 = chars.as_str();
        Some(value)
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !wanted(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at_checked(end).unwrap_or((self.0, ""));
        self.0 = rest;
        taken
    }

    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(unwanted);
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

fn scheme(word: &str) -> Scheme {
    match word.to_ascii_lowercase().as_str() {
        "bearer" => Scheme::Bearer,
        "basic" => Scheme::Basic,
        _ => Scheme::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(headers: &[&str], expected: &str) {
        let found: Vec<String> = parse_challenges(headers.iter().copied())
            .iter()
            .map(|c| {
                let pairs: Vec<_> = c.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("{:?}[{}]", c.scheme, pairs.join(";"))
            })
            .collect();
        assert_eq!(found.join(" "), expected, "{headers:?}");
    }

    #[test]
    fn challenges_as_registries_send_them() {
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
            ],
            "Bearer[realm=https://auth.docker.io/token;service=registry.docker.io;\
             scope=repository:a/b:pull,push]",
        );
        check(&["Basic realm=\"x\"", "bearer Realm = \"y\""], "Bearer[realm=y] Basic[realm=x]");
        check(
            &[r#"Basic realm="a", Bearer realm=b,service=c"#],
            "Bearer[realm=b;service=c] Basic[realm=a]",
        );
        check(&[r#"Bearer realm="a \"q\" \\ b""#], r#"Bearer[realm=a "q" \ b]"#);
        check(&["Negotiate, Basic"], "Basic[] Other[]");
        check(&["Bearer realm=\"open"], "Bearer[]");
        check(&["", ",,", "="], "");
    }

    proptest! {
        #[test]
        fn no_header_panics(text in "\\PC{0,80}") {
            parse_challenges([text.as_str()].into_iter());
        }
    }
}
