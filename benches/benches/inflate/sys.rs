//! The yardsticks: zlib itself, used as the field's tools use it, and its rewrite in Rust.
#![expect(unsafe_code, reason = "the yardsticks have C interfaces")]

use std::mem::{MaybeUninit, size_of};

use libz_sys as z;

const WINDOW_LEN: usize = 32 << 10;

/// A stream that is ended when dropped; boxed because zlib remembers its address.
struct Stream(Box<z::z_stream>);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: `inflater` initialised the stream; nothing reaches it afterwards.
        unsafe { z::inflateEnd(&mut *self.0) };
    }
}

fn inflater(window_bits: i32) -> Stream {
    let mut stream = Box::new(MaybeUninit::<z::z_stream>::zeroed());
    let size = size_of::<z::z_stream>() as i32;
    // SAFETY: all zeros is what zlib asks for: no buffers, its own allocator, which it fills in.
    // Version and size are those that we are compiled with.
    let code =
        unsafe { z::inflateInit2_(stream.as_mut_ptr(), window_bits, z::zlibVersion(), size) };
    assert_eq!(code, z::Z_OK);
    // SAFETY: zlib has set the two function pointers; zeros are valid for the rest.
    Stream(unsafe { stream.assume_init() })
}

/// gzip at level 6.
pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut stream = Box::new(MaybeUninit::<z::z_stream>::zeroed());
    let size = size_of::<z::z_stream>() as i32;
    let version = z::zlibVersion;
    // SAFETY: as in `inflater`; both ranges are those of live buffers, and the bound is zlib's own.
    unsafe {
        let code = z::deflateInit2_(stream.as_mut_ptr(), 6, 8, 31, 8, 0, version(), size);
        assert_eq!(code, z::Z_OK);
        let mut stream = stream.assume_init();
        let bound = z::deflateBound(&mut *stream, content.len() as _) as usize;
        let mut out = vec![0; bound];
        stream.next_in = content.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(content.len()).unwrap();
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = u32::try_from(bound).unwrap();
        assert_eq!(z::deflate(&mut *stream, z::Z_FINISH), z::Z_STREAM_END);
        let len = bound - stream.avail_out as usize;
        z::deflateEnd(&mut *stream);
        out.truncate(len);
        out
    }
}

/// One span, behind its window and from its bit.
pub(crate) fn inflate_span(data: &[u8], bits: u8, window: Option<&[u8]>, out: &mut [u8]) {
    let mut stream = inflater(-15);
    let stream = &mut *stream.0;
    let input = if bits > 0 { &data[1..] } else { data };
    // SAFETY: `inflater` initialised the stream; all ranges are those of live slices.
    unsafe {
        if bits > 0 {
            z::inflatePrime(stream, bits.into(), (data[0] >> (8 - bits)).into());
        }
        if let Some(window) = window {
            z::inflateSetDictionary(stream, window.as_ptr(), window.len() as u32);
        }
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = input.len() as u32;
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = out.len() as u32;
        z::inflate(stream, z::Z_SYNC_FLUSH);
    }
    assert_eq!(stream.avail_out, 0);
}

/// The field's first pass: checkpoints, through a ring of one window. Returns how many.
pub(crate) fn index(gz: &[u8], span_size: u64) -> usize {
    let mut stream = inflater(47);
    let stream = &mut *stream.0;
    let mut ring = vec![0; WINDOW_LEN];
    let mut windows: Vec<Vec<u8>> = Vec::new();
    let (mut total, mut last) = (0_u64, 0);
    stream.next_in = gz.as_ptr().cast_mut();
    stream.avail_in = gz.len() as u32;
    loop {
        if stream.avail_out == 0 {
            stream.next_out = ring.as_mut_ptr();
            stream.avail_out = WINDOW_LEN as u32;
        }
        let room = stream.avail_out;
        // SAFETY: `inflater` initialised the stream; both ranges are those of live buffers.
        let code = unsafe { z::inflate(stream, z::Z_BLOCK) };
        total += u64::from(room - stream.avail_out);
        if code == z::Z_STREAM_END {
            return windows.len();
        }
        assert!(code == z::Z_OK || code == z::Z_BUF_ERROR, "zlib says {code}");
        let at_block = stream.data_type & 128 != 0 && stream.data_type & 64 == 0;
        if at_block && (total == 0 || total - last > span_size) {
            let (new, old) = ring.split_at(WINDOW_LEN - stream.avail_out as usize);
            windows.push([old, new].concat());
            last = total;
        }
    }
}

/// The field's second pass: the bytes in order, by a library with zlib's interface.
macro_rules! reader {
    ($name:ident, $library:ident) => {
        pub(crate) mod $name {
            use $library as z;

            /// All of a gzip stream, in pieces.
            pub(crate) fn read(gz: &[u8], mut to: impl FnMut(&[u8])) {
                let mut stream = Box::new(std::mem::MaybeUninit::<z::z_stream>::zeroed());
                let size = size_of::<z::z_stream>() as i32;
                // SAFETY: all zeros is what zlib asks for: no buffers, its own allocator, which it
                // fills in with the function pointers; version and size are those of this build.
                let mut stream = unsafe {
                    let code = z::inflateInit2_(stream.as_mut_ptr(), 47, z::zlibVersion(), size);
                    assert_eq!(code, z::Z_OK);
                    stream.assume_init()
                };
                let mut buffer = vec![0; 64 << 10];
                stream.next_in = gz.as_ptr().cast_mut();
                stream.avail_in = gz.len() as u32;
                loop {
                    stream.next_out = buffer.as_mut_ptr();
                    stream.avail_out = buffer.len() as u32;
                    // SAFETY: initialised above; both ranges are those of live buffers.
                    let code = unsafe { z::inflate(&mut *stream, z::Z_NO_FLUSH) };
                    let len = buffer.len() - stream.avail_out as usize;
                    to(&buffer[..len]);
                    if code == z::Z_STREAM_END {
                        break;
                    }
                    assert_eq!(code, z::Z_OK);
                }
                // SAFETY: initialised above, and not used again.
                unsafe { z::inflateEnd(&mut *stream) };
            }
        }
    };
}

reader!(zlib, libz_sys);
reader!(zlib_rs, libz_rs_sys);
