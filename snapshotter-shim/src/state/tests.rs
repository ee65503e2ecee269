use std::time::{Duration, SystemTime};

use super::*;

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(seconds, 17)
}

/// Runs commands one second apart; the last one's answer is returned.
fn run(commands: Vec<Command>) -> (State, Result<(), Refusal>) {
    let mut state = State::default();
    let mut last = Ok(());
    for (second, mut command) in commands.into_iter().enumerate() {
        if let Command::Create { id, .. } = &mut command {
            *id = second as u64 + 1;
        }
        last = state.handle(command, time(second as u64)).map(|change| state.apply(change));
    }
    (state, last)
}

fn create(key: &str, kind: Kind, parent: &str) -> Command {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    Command::Create { id: 0, key, kind, parent, labels: Labels::default() }
}

fn active(key: &str, parent: &str) -> Command {
    create(key, Kind::Active, parent)
}

fn commit(name: &str, key: &str) -> Command {
    adopt(name, key, "")
}

fn adopt(name: &str, key: &str, parent: &str) -> Command {
    Command::Commit {
        name: name.to_owned(),
        key: key.to_owned(),
        labels: Labels::default(),
        parent: parent.to_owned(),
        usage: Usage { bytes: 7, inodes: 2 },
    }
}

fn remove(name: &str) -> Command {
    Command::Remove { name: name.to_owned() }
}

fn base() -> Vec<Command> {
    vec![active("a", ""), commit("A", "a")]
}

fn with(more: impl IntoIterator<Item = Command>) -> Vec<Command> {
    base().into_iter().chain(more).collect()
}

#[test]
fn refusals() {
    let missing = |name: &str| Err(Refusal::NotFound(name.to_owned()));
    let exists = |name: &str| Err(Refusal::AlreadyExists(name.to_owned()));
    let check = |commands: Vec<Command>, expected: Result<(), Refusal>| {
        assert_eq!(run(commands).1, expected);
    };
    check(vec![active("x", "nobody")], missing("nobody"));
    check(vec![active("x", ""), active("y", "x")], {
        Err(Refusal::Invalid("parent \"x\" is not committed".to_owned()))
    });
    check(with([active("A", "")]), exists("A"));
    check(vec![active("x", ""), create("x", Kind::View, "")], exists("x"));
    check(vec![create("x", Kind::View, ""), create("x", Kind::View, "")], exists("x"));
    check(vec![commit("B", "b")], missing("b"));
    check(with([active("b", "A"), commit("A", "b")]), exists("A"));
    check(with([commit("B", "a")]), missing("a"));
    check(with([create("v", Kind::View, "A"), commit("B", "v")]), {
        Err(Refusal::Precondition("snapshot \"v\" is view, not active".to_owned()))
    });
    check(with([commit("B", "A")]), {
        Err(Refusal::Precondition("snapshot \"A\" is committed, not active".to_owned()))
    });
    check(with([active("b", "A"), remove("A")]), {
        Err(Refusal::Precondition("cannot remove snapshot \"A\" with children".to_owned()))
    });
    check(with([remove("a")]), missing("a"));
    check(with([active("b", ""), adopt("B", "b", "nobody")]), missing("nobody"));
    check(with([active("b", ""), active("c", ""), adopt("B", "b", "c")]), {
        Err(Refusal::Precondition("parent \"c\" is active, not committed".to_owned()))
    });
    check(with([active("b", "A"), commit("B", "b"), active("c", "B"), adopt("C", "c", "A")]), {
        Err(Refusal::Invalid("snapshot \"c\" has parent \"B\", commit names \"A\"".to_owned()))
    });
}

#[test]
fn commit_keeps_the_id_and_replaces_the_rest() {
    let mut commands = base();
    commands.insert(1, active("other", ""));
    let (state, _) = run(commands);
    let snapshot = state.get("A").unwrap();
    assert_eq!((snapshot.id, snapshot.kind), (1, Kind::Committed));
    assert_eq!((snapshot.created, snapshot.updated), (time(2), time(2)));
    assert_eq!(snapshot.usage, Usage { bytes: 7, inodes: 2 });
    assert!(state.get("a").is_none());
}

#[test]
fn a_parent_is_adopted_and_then_pinned() {
    let (state, last) = run(with([active("b", ""), adopt("B", "b", "A"), remove("A")]));
    assert!(matches!(last, Err(Refusal::Precondition(_))));
    let parents: Vec<_> = state.parents(state.get("B").unwrap()).map(|s| &s.name).collect();
    assert_eq!(parents, ["A"]);
}

#[test]
fn a_name_is_free_again_after_its_removal() {
    let (state, last) = run(with([
        active("b", "A"),
        remove("b"),
        create("b", Kind::View, "A"),
        remove("b"),
        remove("A"),
        active("a", ""),
        commit("A", "a"),
    ]));
    assert_eq!(last, Ok(()));
    assert_eq!(state.walk().map(|s| (s.name.as_str(), s.id)).collect::<Vec<_>>(), [("A", 8)]);
}

#[test]
fn masks_change_labels_only() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
    let check = |mask: &[&str], new: &[(&str, &str)], expected: &[(&str, &str)]| {
        let mut old = labels(&[("l1", "1"), ("l2", "2"), ("a.b", "3")]);
        LabelMask::from_paths(mask).unwrap().apply(&mut old, labels(new)).unwrap();
        assert_eq!(old, labels(expected), "{mask:?}");
    };
    check(&[], &[("l4", "4")], &[("l4", "4")]);
    check(&["labels"], &[], &[]);
    check(&["labels.l1", "labels.l2"], &[("l1", "x"), ("l4", "4")], &[("l1", "x"), ("a.b", "3")]);
    check(&["labels.a.b"], &[("a.b", "y")], &[("l1", "1"), ("l2", "2"), ("a.b", "y")]);
    check(&["labels.foo"], &[], &[("l1", "1"), ("l2", "2"), ("a.b", "3")]);
    for mask in [&["parent"][..], &["labels", "name"], &["labels", "labelsx"], &["labels."]] {
        assert!(matches!(LabelMask::from_paths(mask), Err(Refusal::Invalid(_))), "{mask:?}");
    }
}

#[test]
fn long_labels_are_refused() {
    let labels = [("k".repeat(96), "v".repeat(4001))].into_iter().collect();
    let (key, parent) = ("x".to_owned(), String::new());
    let command = Command::Create { id: 0, key, kind: Kind::Active, parent, labels };
    assert!(matches!(run(vec![command]).1, Err(Refusal::Invalid(_))));
}

#[test]
fn a_layer_is_found_by_chain_and_parent() {
    let labelled = |name: &str, key: &str, chain: &str| Command::Commit {
        name: name.to_owned(),
        key: key.to_owned(),
        labels: [(labels::TARGET, chain)].into_iter().collect(),
        parent: String::new(),
        usage: Usage::default(),
    };
    let commands = with([
        active("b", "A"),
        labelled("ns1/B", "b", "sha256:b"),
        active("c", "A"),
        labelled("ns2/B", "c", "sha256:b"),
        active("d", ""),
        labelled("other", "d", "sha256:b"),
    ]);
    let (mut state, last) = run(commands);
    assert_eq!(last, Ok(()));
    let found = |state: &State, parent| state.layer("sha256:b", parent).map(|s| s.name.clone());
    assert_eq!(found(&state, "A").as_deref(), Some("ns1/B"));
    assert_eq!(found(&state, "").as_deref(), Some("other"));
    assert_eq!(found(&state, "a"), None);
    for (gone, left) in [("ns1/B", Some("ns2/B")), ("ns2/B", None)] {
        let change = state.handle(remove(gone), time(9)).unwrap();
        state.apply(change);
        assert_eq!(found(&state, "A").as_deref(), left);
    }
    let mask = LabelMask::All;
    let relabel = Command::Update { name: "other".into(), labels: Labels::default(), mask };
    let change = state.handle(relabel, time(9)).unwrap();
    state.apply(change);
    assert_eq!(found(&state, ""), None, "a label that was taken away counts no more");
}
