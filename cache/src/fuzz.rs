//! Doors for the fuzz targets of the gzip decoder.

use spanfs_layer::ztoc::Compression;

use crate::build::{BuildOptions, is_same_with_helpers};
use crate::deflate::{Event, Inflate};
use crate::sys::{Format, Inflater, Stop};

/// What came out of a blob, and whether the decoder refused it in the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Gunzipped {
    /// Output, as far as it came.
    pub bytes: Vec<u8>,
    /// It is no gzip, or damaged.
    pub is_bad: bool,
}

/// A bomb is cut off: what fuzzing finds it finds earlier.
const BYTES_MAX: usize = 4 << 20;

/// By the decoder of a pass, in pieces; `room` bytes come out at once.
pub fn gunzip(blob: &[u8], piece_len: usize, room: usize) -> Gunzipped {
    const WINDOW_LEN: usize = spanfs_layer::ztoc::WINDOW_LEN;
    let (mut decoder, mut bytes) = (Inflate::new(), Vec::new());
    let (mut buffer, mut filled) = (vec![0; WINDOW_LEN + room.max(1)], WINDOW_LEN);
    for mut input in blob.chunks(piece_len.max(1)) {
        loop {
            if filled == buffer.len() {
                buffer.copy_within(filled - WINDOW_LEN.., 0);
                filled = WINDOW_LEN;
            }
            let from = filled;
            let event = decoder.step(&mut input, &mut buffer, &mut filled);
            bytes.extend_from_slice(buffer.get(from..filled).unwrap_or_default());
            match event {
                Err(_) => return Gunzipped { bytes, is_bad: true },
                _ if bytes.len() >= BYTES_MAX => return Gunzipped { bytes, is_bad: false },
                Ok(Event::NeedsInput) => break,
                Ok(Event::NeedsRoom | Event::Block(_) | Event::End { .. }) => {}
            }
        }
    }
    Gunzipped { bytes, is_bad: false }
}

/// By zlib, at once.
pub fn gunzip_by_zlib(blob: &[u8]) -> Gunzipped {
    let Ok(mut decoder) = Inflater::new(Format::Gzip) else { unreachable!("memory for a decoder") };
    let (mut rest, mut bytes, mut room) = (blob, Vec::new(), vec![0; 64 << 10]);
    loop {
        let Ok(progress) = decoder.step(rest, &mut room, Stop::End) else {
            return Gunzipped { bytes, is_bad: true };
        };
        rest = rest.get(progress.consumed..).unwrap_or_default();
        bytes.extend_from_slice(room.get(..progress.produced).unwrap_or_default());
        if progress.end {
            decoder.reset(Format::Gzip);
        } else if progress.is_stuck() || bytes.len() >= BYTES_MAX {
            return Gunzipped { bytes, is_bad: false };
        }
    }
}

/// A pass over a blob with helpers gives what it gives in order, or has the same kind of fault.
pub fn gunzip_ahead(blob: &[u8], piece_len: usize) -> bool {
    let options = BuildOptions {
        compression: Some(Compression::Gzip),
        span_size: 1 << 14,
        uncompressed_bytes_max: BYTES_MAX as u64,
        ..BuildOptions::default()
    };
    is_same_with_helpers(blob, piece_len.max(1), &options)
}
