//! libdeflate: one call decodes one complete DEFLATE stream.

use std::ptr::NonNull;

use libdeflate_sys as ffi;

/// Decoder of complete raw DEFLATE streams. Keeps no state between calls but its tables.
pub(crate) struct WholeStream(NonNull<ffi::libdeflate_decompressor>);

/// Why a stream was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WholeError {
    /// The input is no complete DEFLATE stream.
    Bad,
    /// The output has no room for the stream.
    OutputFull,
}

// SAFETY: the decompressor is plain memory without thread affinity, reached only through this value.
unsafe impl Send for WholeStream {}

impl WholeStream {
    /// `None` if there is no memory for its tables (some 12 KiB).
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: the function has no precondition; null means out of memory and is turned into None.
        NonNull::new(unsafe { ffi::libdeflate_alloc_decompressor() }).map(Self)
    }

    /// Decode the stream at the start of `input`; returns the bytes consumed and produced. Bytes
    /// behind the stream's final block are left alone.
    pub(crate) fn inflate(
        &mut self,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(usize, usize), WholeError> {
        let (mut consumed, mut produced) = (0, 0);
        // SAFETY: the decompressor is ours until drop. Both ranges are those of live slices, the
        // output's exclusively borrowed; libdeflate promises to read and write only inside them. The
        // two counters outlive the call.
        let result = unsafe {
            ffi::libdeflate_deflate_decompress_ex(
                self.0.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                output.as_mut_ptr().cast(),
                output.len(),
                &mut consumed,
                &mut produced,
            )
        };
        match result {
            ffi::libdeflate_result_LIBDEFLATE_SUCCESS => {
                assert!(consumed <= input.len() && produced <= output.len());
                Ok((consumed, produced))
            }
            ffi::libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE => Err(WholeError::OutputFull),
            _ => Err(WholeError::Bad),
        }
    }
}

/// CRC-32 as gzip trailers hold it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    // SAFETY: the range is that of a live slice and is only read.
    unsafe { ffi::libdeflate_crc32(0, bytes.as_ptr().cast(), bytes.len()) }
}

/// CRC-32 of what `sum` is the sum of (0: of nothing), continued by `bytes`.
pub(crate) fn crc32_append(sum: u32, bytes: &[u8]) -> u32 {
    // SAFETY: the range is that of a live slice and is only read.
    unsafe { ffi::libdeflate_crc32(sum, bytes.as_ptr().cast(), bytes.len()) }
}

impl Drop for WholeStream {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed only here, not reachable afterwards.
        unsafe { ffi::libdeflate_free_decompressor(self.0.as_ptr()) }
    }
}
