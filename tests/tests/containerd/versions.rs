//! One suite, two containerds.

use std::path::PathBuf;

use spanfs_tests::peers::{able, strict};

/// A containerd that the tests know to set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Debian's 1.6: client-side pulls, CRI in the daemon, no namespace sent to proxy plugins.
    One,
    /// 2.3, built by `tests/peers/build`: pulls through the transfer service.
    Two,
}

impl Version {
    /// Where its programs are; `None` where they are on PATH.
    pub(crate) fn programs(self) -> Option<PathBuf> {
        match self {
            Self::One => None,
            Self::Two => std::env::var_os("SPANFS_TEST_PEERS").map(PathBuf::from),
        }
    }

    /// Whether this machine can run it; says what is missing.
    pub(crate) fn is_here(self) -> bool {
        let common = ["runc", "busybox", "setpriv", "nsenter", "unshare"];
        match self {
            Self::One => able(&[&common[..], &["containerd", "ctr"]].concat(), true),
            Self::Two => {
                let built = self.programs().is_some_and(|dir| dir.join("containerd").is_file());
                assert!(built || !strict(), "SPANFS_TEST_PEERS has no containerd in a strict run");
                if !built {
                    eprintln!("skipped: no containerd 2 in SPANFS_TEST_PEERS (tests/peers/build)");
                }
                built && able(&common, true)
            }
        }
    }

    /// PATH with its programs in front.
    pub(crate) fn path(self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        match self.programs() {
            None => path,
            Some(dir) => format!("{}:{path}", dir.display()),
        }
    }
}

/// True in a long run: `tests/run --soak`.
pub(crate) fn soak() -> bool {
    std::env::var_os("SPANFS_TEST_SOAK").is_some_and(|value| value == "1")
}

/// Makes a test for each containerd from a function that takes a [`Version`].
macro_rules! on_each_containerd {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use crate::versions::Version;

            #[test]
            fn containerd_1() {
                if Version::One.is_here() {
                    super::$scenario(Version::One);
                }
            }

            #[test]
            fn containerd_2() {
                if Version::Two.is_here() {
                    super::$scenario(Version::Two);
                }
            }
        }
    )+};
}
pub(crate) use on_each_containerd;
