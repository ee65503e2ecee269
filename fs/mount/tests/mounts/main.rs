//! Everything that needs a kernel mount: one binary, so that it links once.

mod conformance;
mod content;
mod files;
mod fio;
mod hardship;
mod layers;
mod life;
mod model;
mod one_file;
mod pjdfstest;
mod probe;
mod readonly;
mod scratch;
mod shortcuts;
mod snapshot;
mod survive;
