//! The built snapshotter below real containerds, one binary. Each test has a node of its own: mount
//! and process namespaces where everything has its usual path, so that nodes run side by side and what
//! a failed test leaves behind goes with them.

mod attributes;
mod content;
mod cri;
mod cri_pods;
mod ctr;
mod death;
mod deploy;
mod endurance;
mod faults;
mod getting_started;
mod image;
mod lazy;
mod mirror;
mod node;
mod operators;
mod own_view;
mod parallel;
mod private;
mod process;
mod pull_and_run;
mod recorded;
mod restart;
mod survive;
mod user_namespaces;
mod versions;
mod whole_soon;
