//! The three coordinate systems of a layer, as types that do not mix.

use core::fmt;

macro_rules! offset {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// This offset moved forward, or `None` where it would wrap.
            pub fn checked_add(self, len: u64) -> Option<Self> {
                self.0.checked_add(len).map(Self)
            }

            /// Bytes from `start` to here, or `None` where `start` lies behind.
            pub fn checked_since(self, start: Self) -> Option<u64> {
                self.0.checked_sub(start.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

offset! {
    /// Position in the layer's compressed blob.
    CompressedOffset
}
offset! {
    /// Position in the layer's uncompressed tar, which is also the position in its layer file.
    UncompressedOffset
}
offset! {
    /// Position in the content of one file.
    FileOffset
}
