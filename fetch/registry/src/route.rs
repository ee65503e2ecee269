//! Paths of the distribution API.

use spanfs_layer::Digest;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/token`
    Token,
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest(String, Reference),
    /// `/v2/NAME/blobs/DIGEST`
    Blob(String, Digest),
    /// `/v2/NAME/blobs/uploads/`
    Uploads(String),
    /// `/v2/NAME/blobs/uploads/ID`
    Upload(String, u64),
    /// `/v2/NAME/referrers/DIGEST`
    Referrers(String, Digest),
    /// `/v2/NAME/tags/list`
    Tags(String),
    /// `/blobs/DIGEST` of the blob store behind redirects.
    StoredBlob(Digest),
}

/// How a manifest is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.parse() {
            Ok(digest) => Some(Self::Digest(digest)),
            Err(_) => is_tag(text).then(|| Self::Tag(text.to_owned())),
        }
    }
}

impl Route {
    pub(crate) fn parse(path: &str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        if let Some(digest) = path.strip_prefix("/blobs/") {
            return digest.parse().ok().map(Self::StoredBlob);
        }
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Self::Base);
        }
        let rest = rest.strip_prefix('/')?;
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return named(name).map(Self::Tags);
        }
        let (head, last) = rest.rsplit_once('/')?;
        if let Some(name) = head.strip_suffix("/blobs/uploads") {
            let name = named(name)?;
            return match last {
                "" => Some(Self::Uploads(name)),
                id => id.parse().ok().map(|id| Self::Upload(name, id)),
            };
        }
        let (name, kind) = head.rsplit_once('/')?;
        let name = named(name)?;
        match kind {
            "manifests" => Reference::parse(last).map(|last| Self::Manifest(name, last)),
            "blobs" if last == "uploads" => Some(Self::Uploads(name)),
            "blobs" => last.parse().ok().map(|digest| Self::Blob(name, digest)),
            "referrers" => last.parse().ok().map(|digest| Self::Referrers(name, digest)),
            _ => None,
        }
    }

    /// Repository that the path is about.
    pub(crate) fn repository(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Token | Self::StoredBlob(_) => None,
            Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _)
            | Self::Tags(name) => Some(name),
        }
    }
}

fn named(name: &str) -> Option<String> {
    is_name(name).then(|| name.to_owned())
}

const NAME_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 128;

/// Repository name: components of lower-case letters and digits, joined inside by `.`, `_` or `-`.
pub(crate) fn is_name(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_LEN_MAX
        && name.split('/').all(|component| {
            let bytes = component.as_bytes();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|byte| alphanumeric(byte) || b"._-".contains(byte))
        })
}

/// Tag: a letter, digit or `_`, then also `.` and `-`, 128 in all.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_LEN_MAX
        && bytes.first().is_some_and(word)
        && bytes.iter().all(|byte| word(byte) || b".-".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let digest = Digest::of(b"");
        let check = |path: &str, expected| {
            let path = path.replace("DIGEST", &digest.to_string());
            assert_eq!(Route::parse(&path), expected, "{path}");
        };
        let name = || "a/b".to_owned();
        check("/v2/", Some(Route::Base));
        check("/v2", Some(Route::Base));
        check("/token", Some(Route::Token));
        check("/v2/a/b/tags/list", Some(Route::Tags(name())));
        check("/v2/a/b/manifests/v1", Some(Route::Manifest(name(), Reference::Tag("v1".into()))));
        check("/v2/a/b/manifests/DIGEST", Some(Route::Manifest(name(), Reference::Digest(digest))));
        check("/v2/a/b/blobs/DIGEST", Some(Route::Blob(name(), digest)));
        check("/v2/a/b/blobs/uploads/", Some(Route::Uploads(name())));
        check("/v2/a/b/blobs/uploads", Some(Route::Uploads(name())));
        check("/v2/a/b/blobs/uploads/7", Some(Route::Upload(name(), 7)));
        check("/v2/a/b/referrers/DIGEST", Some(Route::Referrers(name(), digest)));
        check("/blobs/DIGEST", Some(Route::StoredBlob(digest)));
        for path in
            ["/", "/v2/A/tags/list", "/v2/../blobs/DIGEST", "/v2/a/blobs/x", "/v2//tags/list"]
        {
            check(path, None);
        }
    }
}
