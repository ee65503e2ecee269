//! The program as a process: its socket, its supervisor, its settings, and its death.
//!
//! Each test has a root, a socket and a process of its own, ended with the test whatever comes.

mod credentials;
mod cri;
mod death;
mod debug;
mod hardship;
mod isolation;
mod lazy;
mod life;
mod node;
mod owners;
mod parallel;
mod power;
mod pull;
mod scene;
mod systemd;
mod user_namespace;
