//! Which front shows a layer, and which transport carries FUSE: facts in, choices with reasons out.

mod explain;

use std::fmt;

use crate::probe::Facts;
use crate::transport::{Privilege, Transport};

pub use explain::{Finding, explain};

/// How a layer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Front {
    /// By the kernel's EROFS: directly once the layer file is complete, over the one-file FUSE
    /// mount until then.
    Erofs,
    /// By us, inode by inode.
    Inode,
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Inode => "inode",
        })
    }
}

/// A front and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The front.
    pub front: Front,
    /// Who mounts.
    pub privilege: Privilege,
    /// For the log and for `status`.
    pub reason: String,
}

/// What a FUSE mount is for, as far as the choice of its transport goes.
#[derive(Clone, Copy, Debug)]
pub struct Carried<'a> {
    /// Who mounts.
    pub privilege: Privilege,
    /// The front that it is, or is part of.
    pub front: Front,
    /// It outlives the process that serves it: a successor takes it over.
    pub is_kept: bool,
    /// Why requests can't come by io_uring, if they can't ([`crate::probe::uring`]).
    pub uring: &'a Result<(), String>,
}

/// The transport of a FUSE mount, or the one that `forced` asks for, and why.
///
/// What was asked for may turn out impossible when a mount is made.
pub fn transport(carried: Carried<'_>, forced: Option<Transport>) -> (Transport, String) {
    let Carried { privilege, front, is_kept, uring } = carried;
    let (transport, reason) = match (forced, privilege, front, uring) {
        (Some(transport), ..) => (transport, "asked for"),
        (None, Privilege::User, ..) => (Transport::Fuse3, "fusermount3 mounts"),
        (None, Privilege::Root, ..) if is_kept => {
            (Transport::Dev, "a successor can take it over, with what was asked meanwhile")
        }
        (None, Privilege::Root, Front::Erofs, _) => {
            (Transport::Dev, "EROFS reads large pieces, for which io_uring wins nothing")
        }
        (None, Privilege::Root, Front::Inode, Ok(())) => {
            (Transport::Uring, "io_uring: each CPU answers what it asks")
        }
        (None, Privilege::Root, Front::Inode, Err(why)) => {
            return (Transport::Dev, format!("privileged, and no io_uring: {why}"));
        }
    };
    (transport, reason.into())
}

/// Nothing can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be mounted on this machine: {reason}")]
pub struct NoFront {
    reason: String,
}

/// The best front, or the one that `forced` asks for if it can be had.
pub fn choose(facts: &Facts, forced: Option<Front>) -> Result<Choice, NoFront> {
    match forced {
        Some(Front::Erofs) => erofs(facts, "asked for").map_err(|reason| NoFront { reason }),
        Some(Front::Inode) => inode(facts, "asked for"),
        None => match erofs(facts, "file-backed EROFS works here") {
            Ok(choice) => Ok(choice),
            Err(reason) => inode(facts, &reason),
        },
    }
}

fn erofs(facts: &Facts, reason: &str) -> Result<Choice, String> {
    if let Err(why) = &facts.erofs {
        return Err(format!("no file-backed EROFS on kernel {}: {why}", facts.kernel));
    }
    if let Err(why) = &facts.fuse_device {
        return Err(format!("EROFS cannot show incomplete layers, /dev/fuse: {why}"));
    }
    Ok(Choice { front: Front::Erofs, privilege: Privilege::Root, reason: reason.into() })
}

fn inode(facts: &Facts, reason: &str) -> Result<Choice, NoFront> {
    let choice = |privilege| Choice { front: Front::Inode, privilege, reason: reason.into() };
    match (&facts.fuse_device, &facts.fusermount) {
        (Err(why), _) => {
            Err(NoFront { reason: format!("{reason}; no FUSE either, /dev/fuse: {why}") })
        }
        (Ok(()), _) if facts.is_admin => Ok(choice(Privilege::Root)),
        (Ok(()), Some(_)) => Ok(choice(Privilege::User)),
        (Ok(()), None) => Err(NoFront {
            reason: format!("{reason}; FUSE without CAP_SYS_ADMIN needs fusermount3, not in PATH"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts(is_admin: bool, erofs: bool, fuse: bool, fusermount: bool) -> Facts {
        let works = |yes: bool| if yes { Ok(()) } else { Err("tried".to_owned()) };
        Facts {
            kernel: "6.1".into(),
            is_admin,
            erofs: works(erofs),
            fuse_device: works(fuse),
            uring: works(false),
            fusermount: fusermount.then(|| "/bin/fusermount3".into()),
            user_namespaces: true,
        }
    }

    #[test]
    fn the_best_front_that_works_is_taken() {
        use Front::{Erofs, Inode};
        use Privilege::{Root, User};
        let all = facts(true, true, true, true);
        let old = facts(true, false, true, false);
        let user = facts(false, false, true, true);
        let bare = facts(false, false, true, false);
        let no_fuse = facts(true, true, false, true);
        for (facts, forced, expected) in [
            (&all, None, Some((Erofs, Root))),
            (&all, Some(Inode), Some((Inode, Root))),
            (&old, None, Some((Inode, Root))),
            (&old, Some(Erofs), None),
            (&user, None, Some((Inode, User))),
            (&user, Some(Erofs), None),
            (&bare, None, None),
            (&no_fuse, None, None),
        ] {
            let found = choose(facts, forced).ok().map(|choice| (choice.front, choice.privilege));
            assert_eq!(found, expected, "{facts:?} {forced:?}");
        }
    }

    #[test]
    fn the_transport_is_the_fastest_that_may_be_taken() {
        use Privilege::{Root, User};
        use Transport::{Dev, Fuse3, Uring};
        for (privilege, front, is_kept, has_uring, forced, expected) in [
            (Root, Front::Inode, false, true, None, Uring),
            (Root, Front::Inode, false, false, None, Dev),
            (Root, Front::Inode, true, true, None, Dev),
            (Root, Front::Erofs, false, true, None, Dev),
            (Root, Front::Erofs, true, false, None, Dev),
            (User, Front::Inode, false, true, None, Fuse3),
            (Root, Front::Erofs, false, false, Some(Uring), Uring),
            (Root, Front::Inode, false, true, Some(Fuse3), Fuse3),
            (User, Front::Inode, false, true, Some(Dev), Dev),
        ] {
            let uring = &if has_uring { Ok(()) } else { Err("switched off".to_owned()) };
            let carried = Carried { privilege, front, is_kept, uring };
            let (found, reason) = transport(carried, forced);
            assert_eq!(found, expected, "{carried:?} {forced:?}");
            assert!(!reason.is_empty());
        }
        let uring = &Err("switched off".to_owned());
        let carried = Carried { privilege: Root, front: Front::Inode, is_kept: false, uring };
        assert!(transport(carried, None).1.contains("switched off"));
    }

    #[test]
    fn the_reason_says_what_was_tried() {
        let reason = choose(&facts(true, false, true, true), None).unwrap().reason;
        assert!(reason.contains("6.1") && reason.contains("tried"), "{reason}");
        let error = choose(&facts(false, false, true, false), None).unwrap_err().to_string();
        assert!(error.contains("fusermount3"), "{error}");
    }
}
