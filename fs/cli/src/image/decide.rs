//! How a layer comes to a node: span by span, whole by us, or unpacked by containerd. Pure.

/// What the settings say of fetching whole layers side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parallel {
    /// Never.
    Off,
    /// For images without an index.
    Fallback,
    /// In place of lazy layers.
    Always,
}

/// What is known of a layer when its snapshot is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The image has a SOCI index that can be used.
    pub is_indexed: bool,
    /// There is a zTOC of the layer.
    pub has_ztoc: bool,
    /// Bytes of the blob.
    pub size: u64,
    /// Layers below this are not worth their requests.
    pub lazy_len_min: u64,
}

/// How it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Span by span, on demand.
    Lazy,
    /// Whole; where that fails containerd may try.
    Whole {
        /// For the log.
        reason: &'static str,
    },
    /// Whole, and with it the layers above it.
    Parallel,
    /// containerd fetches and unpacks it.
    Defer,
}

/// Choose by the settings and what is known.
pub fn decide(parallel: Parallel, facts: Facts) -> Decision {
    match parallel {
        Parallel::Always => return Decision::Parallel,
        Parallel::Fallback if !facts.is_indexed => return Decision::Parallel,
        _ => {}
    }
    if !facts.is_indexed {
        return Decision::Defer;
    }
    if facts.size < facts.lazy_len_min {
        return Decision::Whole { reason: "the layer is smaller than min_layer_size" };
    }
    match facts.has_ztoc {
        true => Decision::Lazy,
        false => Decision::Whole { reason: "no ztoc for layer" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_mode_and_facts() {
        let facts =
            |is_indexed, has_ztoc, size| Facts { is_indexed, has_ztoc, size, lazy_len_min: 10 };
        let check = |parallel, facts, expected: &str| {
            let found = format!("{:?}", decide(parallel, facts));
            assert!(found.starts_with(expected), "{facts:?}: {found}, expected {expected}");
        };
        for (facts, by_lazy, by_fallback) in [
            (facts(true, true, 10), "Lazy", "Lazy"),
            (facts(true, true, 9), "Whole", "Whole"),
            (facts(true, false, 10), "Whole", "Whole"),
            (facts(false, false, 10), "Defer", "Parallel"),
        ] {
            check(Parallel::Off, facts, by_lazy);
            check(Parallel::Fallback, facts, by_fallback);
            check(Parallel::Always, facts, "Parallel");
        }
    }
}
