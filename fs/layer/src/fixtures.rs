//! The golden fixtures, for tests.

use std::io::Read as _;
use std::path::PathBuf;
use std::string::String;
use std::vec::Vec;

use serde_json::Value;

/// Path of a fixture.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Bytes of a fixture.
pub(crate) fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("reading fixture {name}: {error}"))
}

/// A fixture that is one JSON value.
pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&bytes(name)).unwrap()
}

/// A fixture that is one JSON value a line.
pub(crate) fn json_lines(name: &str) -> Vec<Value> {
    let text = String::from_utf8(bytes(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A layer's tar.
pub(crate) fn tar(file: &str) -> Vec<u8> {
    let blob = bytes(&std::format!("layers/{file}"));
    if file.ends_with(".tar") {
        return blob;
    }
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut tar).unwrap();
    tar
}

/// Bytes written as hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digit = |digit: u8| (digit as char).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A byte string that is `KEY` as text or `KEY_hex`.
pub(crate) fn raw(value: &Value, key: &str) -> Vec<u8> {
    match (value.get(key), value.get(std::format!("{key}_hex"))) {
        (_, Some(hex)) => unhex(hex.as_str().unwrap()),
        (Some(text), None) => text.as_str().unwrap().into(),
        (None, None) => Vec::new(),
    }
}

/// Every record and the end of a tar, fed in pieces of `piece_len` bytes.
pub(crate) fn read_tar(
    tar: &[u8],
    piece_len: usize,
) -> Result<(Vec<crate::Record>, crate::tar::Archive), crate::tar::TarError> {
    let mut reader = crate::tar::Reader::new(crate::tar::Limits::default());
    let mut records = Vec::new();
    for piece in tar.chunks(piece_len) {
        reader.feed(piece, &mut records)?;
    }
    Ok((records, reader.finish()?))
}
