//! Which front shows a layer, and which transport carries FUSE: facts in, choices with reasons out.

use std::fmt;

use crate::probe::Facts;
use crate::transport::{Privilege, Transport};

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

/// The transport of FUSE mounts made with `privilege`, or the one that `forced` asks for, and why.
///
/// What was asked for may turn out impossible when a mount is made.
pub fn transport(privilege: Privilege, forced: Option<Transport>) -> (Transport, &'static str) {
    match (forced, privilege) {
        (Some(transport), _) => (transport, "asked for"),
        (None, Privilege::Root) => (Transport::Dev, "privileged: it answers without a hop"),
        (None, Privilege::User) => (Transport::Fuse3, "fusermount3 mounts"),
    }
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

    fn facts(is_admin: bool, erofs: bool, fuse: bool, fusermount: bool) -> Facts {
        let works = |yes: bool| if yes { Ok(()) } else { Err("tried".to_owned()) };
        Facts {
            kernel: "6.1".into(),
            is_admin,
            erofs: works(erofs),
            fuse_device: works(fuse),
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
    fn the_transport_is_the_fastest_that_the_privilege_allows() {
        for (privilege, forced, expected) in [
            (Privilege::Root, None, Transport::Dev),
            (Privilege::User, None, Transport::Fuse3),
            (Privilege::Root, Some(Transport::Fuse3), Transport::Fuse3),
            (Privilege::User, Some(Transport::Dev), Transport::Dev),
        ] {
            assert_eq!(transport(privilege, forced).0, expected, "{privilege:?} {forced:?}");
        }
    }

    #[test]
    fn the_reason_says_what_was_tried() {
        let reason = choose(&facts(true, false, true, true), None).unwrap().reason;
        assert!(reason.contains("6.1") && reason.contains("tried"), "{reason}");
        let error = choose(&facts(false, false, true, false), None).unwrap_err().to_string();
        assert!(error.contains("fusermount3"), "{error}");
    }
}
