//! Documents of an image that somebody nearer than its registry has.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use spanfs_layer::{Digest, Hasher};

/// Looks for a document by its digest. What it gives is compared with that.
pub type Nearby = Arc<dyn Fn(Digest) -> NearbyFound + Send + Sync>;
/// Its answer.
pub type NearbyFound = Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>;

/// Who takes longer than a registry is not near.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// The document, if it is near.
pub(super) async fn find(nearby: Option<&Nearby>, digest: &Digest) -> Option<Bytes> {
    let found = tokio::time::timeout(WAIT_MAX, nearby?(*digest)).await.ok()??;
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&found);
    let is_sound = hasher.finish() == *digest;
    if !is_sound {
        tracing::warn!(%digest, "a document that is near has another digest; the registry is asked");
    }
    is_sound.then_some(found)
}
