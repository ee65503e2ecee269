//! The inner loop of [`crate::deflate`], compiled for processors that shift by any register at once.

use crate::deflate::{BadStream, Codes, Flow, Symbol, symbols};

/// See [`symbols`].
pub(crate) fn fast_symbols<S: Symbol>(
    codes: &Codes,
    flow: &mut Flow<'_, '_, S>,
) -> Result<(), BadStream> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for, as was just asked.
        return unsafe { with_bmi2(codes, flow) };
    }
    symbols(codes, flow)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn with_bmi2<S: Symbol>(codes: &Codes, flow: &mut Flow<'_, '_, S>) -> Result<(), BadStream> {
    symbols(codes, flow)
}
