//! End-to-end tests, one binary. Whatever needs root, a kernel feature or a peer looks for it at run
//! time, says why it skips, and may not skip where `SPANFS_TEST_STRICT=1`.

mod demo;
mod erofs;
mod faults;
mod fuzz;
mod hostile;
mod model;
mod mount;
mod node;
mod options;
mod peers;
mod pressure;
mod proxy;
mod reach;
mod scratch;
mod survive;
mod token_server;
mod trees;
mod unprivileged;
