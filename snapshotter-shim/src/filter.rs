//! containerd's filter language, as its snapshot listing uses it.
//!
//! `selector ("," selector)*`, each `field.path [operator value]`; operators `==`, `!=`, `~=`.
//! Reference: package `filters` of containerd. Filters of one list are OR-ed, selectors of one filter
//! AND-ed.

use regex::Regex;

use crate::state::Snapshot;

/// Filters of one request; none match everything.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

/// Why a filter is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?} at byte {at}: {problem}: invalid argument")]
pub struct FilterError {
    filter: String,
    at: usize,
    problem: &'static str,
}

#[derive(Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// No snapshot has it.
    Unknown,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Unequal(String),
    /// A pattern that does not compile never matches.
    Matches(Option<Regex>),
}

/// Compiled size of one pattern: the filters come from whoever can reach our socket.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Filters {
    /// Parse the filters of a request. An empty string matches everything.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        if filters.iter().any(|filter| filter.as_ref().is_empty()) {
            return Ok(Self::default());
        }
        filters
            .iter()
            .map(|filter| Parser::new(filter.as_ref()).filter())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a snapshot is listed.
    pub fn matches(&self, snapshot: &Snapshot) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|selectors| selectors.iter().all(|s| s.matches(snapshot)))
    }
}

impl Selector {
    fn matches(&self, snapshot: &Snapshot) -> bool {
        let value = match &self.field {
            Field::Name => Some(snapshot.name.as_str()),
            Field::Parent => Some(snapshot.parent.as_str()),
            Field::Kind => Some(snapshot.kind.name()),
            Field::Label(key) => snapshot.labels.get(key),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Unequal(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(pattern) => {
                pattern.as_ref().is_some_and(|p| p.is_match(value.unwrap_or_default()))
            }
        }
    }
}

impl Field {
    fn of(path: &[String]) -> Self {
        match path {
            [field] if field == "name" => Self::Name,
            [field] if field == "parent" => Self::Parent,
            [field] if field == "kind" => Self::Kind,
            [field, key @ ..] if field == "labels" && !key.is_empty() => Self::Label(key.join(".")),
            _ => Self::Unknown,
        }
    }
}

struct Parser<'a> {
    filter: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn new(filter: &'a str) -> Self {
        Self { filter, rest: filter }
    }

    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = vec![self.selector()?];
        loop {
            self.skip_space();
            if self.rest.is_empty() {
                return Ok(selectors);
            }
            if !self.take(",") {
                return Err(self.error("expected , or the end"));
            }
            selectors.push(self.selector()?);
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        self.skip_space();
        let test = if self.take("==") {
            Test::Equal(self.value(&['"'])?)
        } else if self.take("!=") {
            Test::Unequal(self.value(&['"'])?)
        } else if self.take("~=") {
            let pattern = self.value(&['"', '/', '|'])?;
            Test::Matches(
                regex::RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).build().ok(),
            )
        } else {
            Test::Present
        };
        Ok(Selector { field: Field::of(&path), test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.error("expected a field"));
        }
        Ok(self.split(end).to_owned())
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, FilterError> {
        self.skip_space();
        match self.rest.chars().next() {
            Some(quote) if quotes.contains(&quote) => self.quoted(quote),
            None | Some(',') => Err(self.error("expected a value")),
            Some(_) => {
                let end = self
                    .rest
                    .find(|c: char| c == ',' || c.is_whitespace())
                    .unwrap_or(self.rest.len());
                Ok(self.split(end).to_owned())
            }
        }
    }

    /// Text in Go's quoting: the escapes of a Go string literal, and the quote itself.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        self.split(quote.len_utf8());
        let mut bytes = Vec::new();
        loop {
            let c = self.next().ok_or_else(|| self.error("quote is not closed"))?;
            match c {
                '\n' | '\0' => return Err(self.error("quoted text has a line end or NUL")),
                _ if c == quote => {
                    return String::from_utf8(bytes)
                        .map_err(|_| self.error("quoted text is not UTF-8"));
                }
                '\\' => self.escape(quote, &mut bytes)?,
                _ => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let c = self.next().ok_or_else(|| self.error("quote is not closed"))?;
        match c {
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            'f' => bytes.push(12),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(11),
            '\\' => bytes.push(b'\\'),
            'x' => bytes.push(self.number(2, 16)? as u8),
            '0'..='7' => {
                let high = c as u32 - '0' as u32;
                let number = high * 64 + self.number(2, 8)?;
                bytes.push(u8::try_from(number).map_err(|_| self.error("octal escape over 255"))?);
            }
            'u' | 'U' => {
                let number = self.number(if c == 'u' { 4 } else { 8 }, 16)?;
                let c = char::from_u32(number).ok_or_else(|| self.error("not a character"))?;
                bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ if c == quote => bytes.push(quote as u8),
            _ => return Err(self.error("unknown escape")),
        }
        Ok(())
    }

    fn number(&mut self, digits: usize, radix: u32) -> Result<u32, FilterError> {
        let text = self.rest.get(..digits).ok_or_else(|| self.error("escape is cut short"))?;
        if !text.chars().all(|c| c.is_digit(radix)) {
            return Err(self.error("escape has a wrong digit"));
        }
        let number = u32::from_str_radix(text, radix).map_err(|_| self.error("wrong escape"))?;
        self.split(digits);
        Ok(number)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.split(c.len_utf8());
        Some(c)
    }

    fn split(&mut self, at: usize) -> &'a str {
        let (head, tail) = self.rest.split_at(at);
        self.rest = tail;
        head
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest.starts_with(token);
        if found {
            self.split(token.len());
        }
        found
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn error(&self, problem: &'static str) -> FilterError {
        let at = self.filter.len() - self.rest.len();
        FilterError { filter: self.filter.to_owned(), at, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::state::{Kind, Listed, Usage};

    fn snapshot() -> Snapshot {
        Snapshot {
            name: "default/1/a b".into(),
            id: 1,
            kind: Kind::Committed,
            parent: "sha256:12".into(),
            labels: [("containerd.io/snapshot.ref", "sha256:ab"), ("l", "2")].into_iter().collect(),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            usage: Usage::default(),
            listed: Listed::default(),
        }
    }

    #[test]
    fn selects() {
        let check = |filters: &[&str], expected: bool| {
            assert_eq!(
                Filters::parse(filters).unwrap().matches(&snapshot()),
                expected,
                "{filters:?}"
            );
        };
        check(&[], true);
        check(&[""], true);
        check(&["kind==active", ""], true);
        check(&["kind==committed"], true);
        check(&["kind==active", "labels.l==2"], true);
        check(&["kind==active,labels.l==2"], false);
        check(&["labels.\"containerd.io/snapshot.ref\"==sha256:ab,parent==\"sha256:12\""], true);
        check(&["labels.\"containerd.io/snapshot.ref\"==sha256:ab,parent==\"\""], false);
        check(&["labels.l"], true);
        check(&["labels.m"], false);
        check(&["labels.m!=1"], true);
        check(&["labels.m!=\"\""], false);
        check(&["parent!=\"\", labels.l == 2"], true);
        check(&[r#"name=="default/1/a\x20b""#], true);
        check(&["name~=/1.a/"], true);
        check(&["name~=|^1|"], false);
        check(&["name~=(", "kind==view"], false);
        check(&["size==1"], false);
    }

    #[test]
    fn refuses() {
        for filter in [
            ",",
            "name==",
            "name=1",
            "name==\"x",
            "name==a b",
            "==1",
            "labels.",
            "a==\"\\q\"",
            "a==\"\\xg0\"",
        ] {
            assert!(Filters::parse(&[filter]).is_err(), "{filter}");
        }
    }
}
