//! zlib's streaming interface (zlib-rs): any piece of a stream, from any bit, behind any window.

use std::mem::size_of;

use libz_rs_sys as ffi;

use spanfs_layer::ztoc::WINDOW_LEN;

/// What the decoder expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// DEFLATE blocks.
    Raw,
    /// A gzip member: header, DEFLATE blocks, trailer, whose checksum and length are compared.
    Gzip,
}

impl Format {
    fn window_bits(self) -> i32 {
        match self {
            Self::Raw => -15,
            Self::Gzip => 16 + 15,
        }
    }
}

/// When a step ends before its input or its room does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Only at the end of the stream.
    End,
    /// Also behind each header and each block: what tests hold our decoder against.
    #[cfg(test)]
    Block,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes taken from the input.
    pub(crate) consumed: usize,
    /// Bytes written to the output.
    pub(crate) produced: usize,
    /// The stream is complete and, for gzip, its trailer right.
    pub(crate) end: bool,
    /// Another block begins here: that many high-order bits of the last byte taken belong to it.
    pub(crate) block: Option<u8>,
}

impl Progress {
    /// True if another step with the same input and room would do nothing.
    pub(crate) fn is_stuck(&self) -> bool {
        self.consumed == 0 && self.produced == 0 && !self.end && self.block.is_none()
    }
}

/// The bytes are not what the format allows; zlib's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadStream(pub(crate) &'static str);

/// Streaming decoder.
///
/// The stream structure is boxed because the library may remember its address.
pub(crate) struct Inflater(Box<ffi::z_stream>);

// SAFETY: the state behind the structure is plain memory without thread affinity, reached only
// through this value.
unsafe impl Send for Inflater {}

impl Inflater {
    /// Decoder at the start of a stream. Fails only for want of memory (some 48 KiB).
    pub(crate) fn new(format: Format) -> Result<Self, BadStream> {
        let mut stream = Box::new(ffi::z_stream::default());
        // SAFETY: the structure is fully initialised, without buffers and with the library's own
        // allocator; version and size are those of the library we are compiled with.
        let code = unsafe {
            ffi::inflateInit2_(
                &mut *stream,
                format.window_bits(),
                ffi::zlibVersion(),
                size_of::<ffi::z_stream>() as i32,
            )
        };
        if code != ffi::Z_OK {
            return Err(BadStream("the decoder can't start for want of memory"));
        }
        Ok(Self(stream))
    }

    /// Forget everything and expect `format`.
    pub(crate) fn reset(&mut self, format: Format) {
        // SAFETY: `new` initialised the stream; only `drop` ends it.
        let code = unsafe { ffi::inflateReset2(&mut *self.0, format.window_bits()) };
        assert_eq!(code, ffi::Z_OK, "the window bits are constants that zlib allows");
    }

    /// Let the lower `bits` (1 to 7) of `value` precede the input of a raw stream just reset.
    pub(crate) fn prime(&mut self, bits: u8, value: u8) {
        assert!((1..8).contains(&bits));
        // SAFETY: `new` initialised the stream; only `drop` ends it.
        let code = unsafe { ffi::inflatePrime(&mut *self.0, i32::from(bits), i32::from(value)) };
        assert_eq!(code, ffi::Z_OK, "a stream just reset holds no bits");
    }

    /// Let a raw stream just reset refer back to `window`.
    pub(crate) fn set_window(&mut self, window: &[u8; WINDOW_LEN]) {
        // SAFETY: `new` initialised the stream; the pointer and length are those of a live array,
        // which the library copies.
        let code =
            unsafe { ffi::inflateSetDictionary(&mut *self.0, window.as_ptr(), WINDOW_LEN as u32) };
        assert_eq!(code, ffi::Z_OK, "a raw stream just reset takes a dictionary");
    }

    /// Decode as far as input, room and `stop` allow.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stop: Stop,
    ) -> Result<Progress, BadStream> {
        let stream = &mut *self.0;
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = given;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        let flush = match stop {
            Stop::End => ffi::Z_NO_FLUSH,
            #[cfg(test)]
            Stop::Block => ffi::Z_BLOCK,
        };
        // SAFETY: `new` initialised the stream; the two ranges lie within live slices, the output's
        // exclusively borrowed; the input is only read though zlib's type says otherwise.
        let code = unsafe { ffi::inflate(stream, flush) };
        let consumed = given - stream.avail_in;
        let produced = room - stream.avail_out;
        // No pointer into the caller's slices stays behind.
        stream.next_in = std::ptr::null_mut();
        stream.avail_in = 0;
        stream.next_out = std::ptr::null_mut();
        stream.avail_out = 0;
        if !matches!(code, ffi::Z_OK | ffi::Z_STREAM_END | ffi::Z_BUF_ERROR) {
            return Err(BadStream(words(stream, code)));
        }
        let state = stream.data_type;
        let block = (state & AT_BLOCK != 0 && state & LAST_BLOCK == 0).then_some((state & 7) as u8);
        let end = code == ffi::Z_STREAM_END;
        Ok(Progress {
            consumed: consumed as usize,
            produced: produced as usize,
            end,
            block: block.filter(|_| !end),
        })
    }
}

/// Bits of zlib's `data_type` after a step: at the start of a block; the block before was the last.
const AT_BLOCK: i32 = 128;
const LAST_BLOCK: i32 = 64;

fn words(stream: &ffi::z_stream, code: i32) -> &'static str {
    if stream.msg.is_null() {
        return match code {
            ffi::Z_NEED_DICT => "the stream needs a dictionary",
            ffi::Z_MEM_ERROR => "the decoder has no memory",
            _ => "the stream is not valid",
        };
    }
    // SAFETY: where the library sets a message, it points to a NUL-terminated constant of its own.
    unsafe { std::ffi::CStr::from_ptr::<'static>(stream.msg) }
        .to_str()
        .unwrap_or("the stream is not valid")
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: `new` initialised the stream; nothing reaches it afterwards.
        unsafe { ffi::inflateEnd(&mut *self.0) };
    }
}
