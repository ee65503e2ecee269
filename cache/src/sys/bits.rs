//! The inner loop of [`crate::deflate`], compiled for processors that shift by any register at once.

use crate::deflate::{BadStream, Bits, Codes, symbols};

/// See [`symbols`].
pub(crate) fn fast_symbols(
    codes: &Codes,
    bits: &mut Bits,
    input: &mut &[u8],
    buffer: &mut [u8],
    filled: &mut usize,
    floor: usize,
) -> Result<(), BadStream> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for, as was just asked.
        return unsafe { with_bmi2(codes, bits, input, buffer, filled, floor) };
    }
    symbols(codes, bits, input, buffer, filled, floor)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn with_bmi2(
    codes: &Codes,
    bits: &mut Bits,
    input: &mut &[u8],
    buffer: &mut [u8],
    filled: &mut usize,
    floor: usize,
) -> Result<(), BadStream> {
    symbols(codes, bits, input, buffer, filled, floor)
}
