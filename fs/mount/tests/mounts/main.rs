//! Everything that needs a kernel mount: one binary, so that it links once.

mod content;
mod one_file;
mod scratch;
