//! The choices of this module in words, fact by fact, for those who ask why.

use super::{Carried, Front, choose, transport};
use crate::probe::Facts;
use crate::transport::Transport;

/// One fact, or one choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, in a word or two.
    pub subject: &'static str,
    /// Nothing is missing here.
    pub is_good: bool,
    /// What was found, or chosen.
    pub text: String,
    /// What to do about it, where something is missing that makes mounts faster or possible.
    pub remedy: Option<&'static str>,
}

/// What `facts` mean for mounts, with the front and the transport that they lead to, unless others
/// are asked for; `is_kept` if mounts outlive the process that serves them.
pub fn explain(
    facts: &Facts,
    front: Option<Front>,
    forced: Option<Transport>,
    is_kept: bool,
) -> Vec<Finding> {
    let works = |outcome: &Result<(), String>| outcome.clone().map(|()| "works".to_owned());
    let helper = facts.fusermount.as_ref().map(|path| path.display().to_string());
    let mut findings = vec![
        fact("kernel", Ok(facts.kernel.clone()), ""),
        fact(
            "privilege",
            facts.is_admin.then(|| "CAP_SYS_ADMIN".into()).ok_or("no CAP_SYS_ADMIN".into()),
            "run as root: EROFS and our own FUSE loop need it",
        ),
        fact(
            "/dev/fuse",
            works(&facts.fuse_device),
            "load the fuse module, or let this container use the device",
        ),
        fact(
            "EROFS on files",
            works(&facts.erofs),
            "use Linux 6.12 or newer with the erofs module; until then FUSE alone shows layers",
        ),
        fact(
            "FUSE over io_uring",
            works(&facts.uring),
            "on Linux 6.14 or newer: echo Y > /sys/module/fuse/parameters/enable_uring",
        ),
    ];
    if !facts.is_admin {
        let remedy = "install fuse3: mounts without root need its setuid program";
        findings.push(fact("fusermount3", helper.ok_or("not in PATH".into()), remedy));
    }
    match choose(facts, front) {
        Ok(choice) => {
            let (privilege, front) = (choice.privilege, choice.front);
            let carried = Carried { privilege, front, is_kept, uring: &facts.uring };
            let (carrier, why) = transport(carried, forced);
            let text = format!("{}: {}", choice.front, choice.reason);
            findings.push(Finding { subject: "front", is_good: true, text, remedy: None });
            let text = format!("{carrier}: {why}");
            findings.push(Finding { subject: "transport", is_good: true, text, remedy: None });
        }
        Err(error) => findings.push(Finding {
            subject: "front",
            is_good: false,
            text: error.to_string(),
            remedy: None,
        }),
    }
    findings
}

fn fact(subject: &'static str, found: Result<String, String>, remedy: &'static str) -> Finding {
    let is_good = found.is_ok();
    let text = found.unwrap_or_else(|why| why);
    Finding { subject, is_good, text, remedy: (!is_good).then_some(remedy) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    fn found(findings: &[Finding], subject: &str) -> (bool, String, bool) {
        let it = findings.iter().find(|it| it.subject == subject).expect(subject);
        (it.is_good, it.text.clone(), it.remedy.is_some())
    }

    #[test]
    fn what_works_needs_no_remedy_and_what_lacks_has_one() {
        let findings = explain(&facts(true, true, true, false), None, None, true);
        for subject in ["kernel", "privilege", "/dev/fuse", "EROFS on files", "front", "transport"]
        {
            assert!(found(&findings, subject).0, "{subject}: {findings:?}");
        }
        assert!(findings.iter().all(|it| it.is_good != it.remedy.is_some()), "{findings:?}");
        assert!(found(&findings, "front").1.starts_with("erofs: "));
        assert_eq!(found(&findings, "FUSE over io_uring"), (false, "tried".into(), true));
    }

    #[test]
    fn what_is_asked_for_is_told_as_such() {
        let all = facts(true, true, true, false);
        let findings = explain(&all, Some(Front::Inode), Some(Transport::Fuse3), false);
        assert_eq!(found(&findings, "front").1, "inode: asked for");
        assert_eq!(found(&findings, "transport").1, "fuse3: asked for");
    }

    #[test]
    fn where_nothing_can_be_mounted_the_reason_is_the_front() {
        let findings = explain(&facts(false, false, true, false), None, None, true);
        let (is_good, text, _) = found(&findings, "front");
        assert!(!is_good && text.contains("fusermount3"), "{text}");
        assert!(!found(&findings, "fusermount3").0 && !found(&findings, "privilege").0);
    }
}
