//! OCI content digests: `algorithm:hex`.

use core::fmt;
use core::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// Hash functions that the OCI image specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// `sha256`, 32 bytes.
    Sha256,
    /// `sha512`, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Name as written before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// Hash of any content. Two digests are equal only if they name the same algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash, followed by zeros up to the longest algorithm.
    bytes: [u8; DIGEST_LEN_MAX],
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:` in front.
    #[error("digest has no algorithm before a colon")]
    NoAlgorithm,
    /// An algorithm other than sha256 and sha512.
    #[error("digest algorithm is neither sha256 nor sha512")]
    UnknownAlgorithm,
    /// The hash is not that many lower-case hexadecimal digits.
    #[error("digest is not {expected} lower-case hexadecimal digits")]
    BadHex {
        /// Digits that the algorithm needs.
        expected: usize,
    },
}

const DIGEST_LEN_MAX: usize = 64;

impl Digest {
    /// SHA-256 of `content`, the form that every tool of the field writes.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        hasher.finish()
    }

    /// A SHA-256 computed elsewhere.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self::from_hash(Algorithm::Sha256, &hash)
    }

    /// A SHA-512 computed elsewhere.
    pub fn from_sha512(hash: [u8; 64]) -> Self {
        Self::from_hash(Algorithm::Sha512, &hash)
    }

    fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut bytes = [0; DIGEST_LEN_MAX];
        for (to, from) in bytes.iter_mut().zip(hash) {
            *to = *from;
        }
        Self { algorithm, bytes }
    }

    /// Hash function in use.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bare hash.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.len()).unwrap_or_default()
    }

    /// The hash in lower-case hexadecimal, as blob stores use it for file names.
    pub fn hex(&self) -> impl fmt::Display + '_ {
        Hex(self.as_bytes())
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), Hex(self.as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm),
        };
        let expected = algorithm.len() * 2;
        let bad = DigestError::BadHex { expected };
        if hex.len() != expected {
            return Err(bad);
        }
        let mut bytes = [0; DIGEST_LEN_MAX];
        for (to, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let &[high, low] = pair else { return Err(bad) };
            *to = hex_value(high).ok_or(bad)? << 4 | hex_value(low).ok_or(bad)?;
        }
        Ok(Self { algorithm, bytes })
    }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Digest of content that passes by in pieces.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Nothing hashed yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// The next piece, in order.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(content),
            State::Sha512(state) => state.update(content),
        }
    }

    /// Digest of all pieces.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::from_hash(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => Digest::from_hash(Algorithm::Sha512, &state.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn text_and_hash_agree() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>(), Ok(Digest::of(b"")));
    }

    #[test]
    fn odd_texts_are_refused() {
        for (text, error) in [
            ("e3b0", DigestError::NoAlgorithm),
            ("md5:00", DigestError::UnknownAlgorithm),
            ("sha256:E3", DigestError::BadHex { expected: 64 }),
            (&("sha256:".to_string() + &"G".repeat(64)), DigestError::BadHex { expected: 64 }),
            (&("sha256:".to_string() + &"A".repeat(64)), DigestError::BadHex { expected: 64 }),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }
}
