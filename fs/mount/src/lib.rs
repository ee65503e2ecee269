//! A layer as a mounted filesystem: fronts, transports, errno.
//!
//! Knows nothing of registries, HTTP and containerd.
