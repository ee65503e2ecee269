//! The memory tier: spans that the disk refused, with a hard limit on their bytes.
//!
//! Only spans that could not be written to a layer file come here; in ordinary life it is empty, and
//! the page cache over the layer file is the memory that readers see.

use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// Names a span of a layer that is open in this process.
pub(crate) type Key = (u32, u32);

/// Inflated bytes of one span.
pub(crate) type SpanBytes = Arc<[u8]>;

/// Spans by key, least recently read dropped first.
#[derive(Clone, Debug)]
pub(crate) struct MemoryTier {
    spans: Cache<Key, SpanBytes>,
    limit_bytes: u64,
}

impl MemoryTier {
    /// Holds at most `limit_bytes` of spans.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        let spans = Cache::builder()
            .max_capacity(limit_bytes)
            .weigher(|_, bytes: &SpanBytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            // Least recently used also admits what was never read before; the default policy may
            // refuse it, and then a reader would wait for ever for a span that never stays.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { spans, limit_bytes }
    }

    /// Keep a span; false if it alone exceeds the limit.
    pub(crate) fn put(&self, key: Key, bytes: SpanBytes) -> bool {
        if bytes.len() as u64 > self.limit_bytes {
            return false;
        }
        self.spans.insert(key, bytes);
        // Evicts now rather than at the cache's leisure, so that the limit is one.
        self.spans.run_pending_tasks();
        self.spans.contains_key(&key)
    }

    /// The bytes of a span, if they are still there.
    pub(crate) fn span(&self, key: Key) -> Option<SpanBytes> {
        self.spans.get(&key)
    }

    /// Drop a span.
    pub(crate) fn remove(&self, key: Key) {
        self.spans.invalidate(&key);
    }

    /// Bytes held.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.spans.run_pending_tasks();
        self.spans.weighted_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_what_is_new_and_stays_within_its_limit() {
        let memory = MemoryTier::new(1000);
        for span in 0..100 {
            assert!(memory.put((0, span), vec![span as u8; 100].into()));
            assert!(memory.used_bytes() <= 1000, "{}", memory.used_bytes());
            assert_eq!(memory.span((0, span)).unwrap()[0], span as u8);
        }
        assert!(memory.span((0, 0)).is_none(), "the oldest is gone");
        assert!(!memory.put((1, 0), vec![0; 1001].into()), "larger than everything");
        memory.remove((0, 99));
        assert!(memory.span((0, 99)).is_none());
    }
}
