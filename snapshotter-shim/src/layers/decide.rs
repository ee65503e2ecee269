//! How a layer comes: span by span, whole by us, or unpacked by containerd. Pure.

use crate::config::PullModes;

/// What is known of a layer when its snapshot is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// The image has a SOCI index that can be used.
    pub(super) is_indexed: bool,
    /// There is a zTOC of the layer.
    pub(super) has_ztoc: bool,
    /// Bytes of the blob.
    pub(super) size: u64,
    /// Layers below this are not worth their requests.
    pub(super) lazy_len_min: u64,
}

/// How it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
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

pub(super) fn decide(modes: &PullModes, facts: Facts) -> Decision {
    match &modes.parallel {
        Some(parallel) if !parallel.is_fallback => return Decision::Parallel,
        Some(_) if !facts.is_indexed => return Decision::Parallel,
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
    use crate::config::Config;

    #[test]
    fn by_mode_and_facts() {
        let modes = |text: &str| Config::parse(text).unwrap().settings.pull_modes;
        let lazy = modes("");
        let table = "[pull_modes.parallel_pull_unpack]\ndiscard_unpacked_layers = true\n";
        let parallel = modes(&format!("{table}enable = true\n"));
        let fallback = modes(&format!("{table}experimental_parallel_pull_as_fallback = true\n"));
        let facts =
            |is_indexed, has_ztoc, size| Facts { is_indexed, has_ztoc, size, lazy_len_min: 10 };
        let check = |modes: &PullModes, facts, expected: &str| {
            let found = format!("{:?}", decide(modes, facts));
            assert!(found.starts_with(expected), "{facts:?}: {found}, expected {expected}");
        };
        for (facts, by_lazy, by_fallback) in [
            (facts(true, true, 10), "Lazy", "Lazy"),
            (facts(true, true, 9), "Whole", "Whole"),
            (facts(true, false, 10), "Whole", "Whole"),
            (facts(false, false, 10), "Defer", "Parallel"),
        ] {
            check(&lazy, facts, by_lazy);
            check(&fallback, facts, by_fallback);
            check(&parallel, facts, "Parallel");
        }
    }
}
