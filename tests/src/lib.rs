//! What the end-to-end tests and the fuzz targets share.

pub mod fuzz;
pub mod peers;
pub mod tars;
