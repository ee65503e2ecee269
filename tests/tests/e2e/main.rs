//! End-to-end tests, one binary. Whatever needs root, a kernel feature or a peer looks for it at run
//! time, says why it skips, and may not skip where `SPANFS_TEST_STRICT=1`.

mod erofs;
mod faults;
mod fuzz;
mod mount;
mod peers;
mod pressure;
mod scratch;
mod survive;
mod token_server;
mod trees;
