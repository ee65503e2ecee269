//! A small OCI registry in the process: content from memory or from a layout, a link whose
//! bandwidth and delay it limits itself, and faults from a seed. It serves the demo, the tests and the
//! benchmarks; it is not for production.
