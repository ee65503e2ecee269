//! The `spanfs` command.
fn main() {}
