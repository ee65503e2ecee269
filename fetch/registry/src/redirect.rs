//! Signed URLs of the blob store that blob GETs may be redirected to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spanfs_layer::Digest;

/// Redirect GETs of blobs to the blob store.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// How long a URL is good for.
    pub lifetime: Duration,
    /// Host name of the blob store in its URLs; the request's own, when `None`.
    pub host: Option<String>,
}

/// Signs and checks URLs.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    secret: String,
}

impl Signer {
    pub(crate) fn new(secret: String) -> Self {
        Self { secret }
    }

    /// Path and query of a blob that is good until `expires`.
    pub(crate) fn sign(&self, digest: &Digest, expires: SystemTime) -> String {
        let expires = milliseconds(expires);
        let signature = self.signature(digest, expires);
        format!("/blobs/{digest}?expires={expires}&signature={signature}")
    }

    pub(crate) fn check(&self, digest: &Digest, query: &str, now: SystemTime) -> bool {
        let mut expires = None;
        let mut signature = None;
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match key.as_ref() {
                "expires" => expires = value.parse::<u64>().ok(),
                "signature" => signature = Some(value.into_owned()),
                _ => {}
            }
        }
        let Some(expires) = expires else { return false };
        signature == Some(self.signature(digest, expires)) && milliseconds(now) < expires
    }

    fn signature(&self, digest: &Digest, expires: u64) -> String {
        Digest::of(format!("{}|{digest}|{expires}", self.secret).as_bytes()).hex().to_string()
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_good_for_their_blob_until_they_expire() {
        let signer = Signer::new("s".into());
        let now = SystemTime::now();
        let digest = Digest::of(b"a");
        let url = signer.sign(&digest, now + Duration::from_secs(1));
        let query = url.split_once('?').unwrap().1;
        assert!(signer.check(&digest, query, now));
        assert!(!signer.check(&digest, query, now + Duration::from_secs(1)));
        assert!(!signer.check(&Digest::of(b"b"), query, now));
        assert!(!signer.check(&digest, &query.replace("expires=", "expires=9"), now));
        assert!(!signer.check(&digest, "", now));
    }
}
