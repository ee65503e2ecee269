//! The client of containerd's API and the `soci` command, against a real containerd.

mod client;
mod containerd;
mod end_to_end;
mod golden;
mod image;
mod interrupted;
mod standalone;
mod stores;
