#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spanfs_tests::fuzz::gzip_ahead(bytes));
