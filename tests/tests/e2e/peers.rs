//! What the end-to-end tests share with the others.

pub(crate) use spanfs_tests::peers::*;
