//! Many nodes that start the same image at once, from what one node was measured to do. Pure, and the
//! same for the same seed.
//!
//! A measured start is a row of pieces: what the link carried in a moment, and how long that moment
//! was. Every node goes through the same pieces; one lasts as long as it was measured, or as long as
//! its bytes need at the node's share of the registry, whatever is more.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::results::{Figures, Results};
use crate::statistics::Rng;

/// By how much a simulated time may be off the real one.
pub(crate) const ERROR_MAX: f64 = 0.2;

/// What is assumed of nodes, registry and network.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Fleet {
    pub(crate) nodes: usize,
    /// Bytes a second that the registry sends in all.
    pub(crate) egress: f64,
    /// Bytes a second that one node takes.
    pub(crate) node_link: f64,
    /// Seconds within which the nodes are told to start.
    pub(crate) spread: f64,
    /// Cores that all nodes share; none where each has its own, as real ones do.
    pub(crate) shared_cores: Option<f64>,
    /// Blobs come from peers once one of them has them.
    pub(crate) peers: bool,
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Bytes that left the registry until all were ready.
    pub(crate) egress_bytes: f64,
}

/// A moment of a measured start.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    seconds: f64,
    bytes: f64,
}

/// The pieces of a start until it was ready.
fn pieces(figures: &Figures) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut at, mut moved) = (0.0, 0);
    let ready = figures.ready;
    for (to, bytes) in figures.moved.iter().copied().filter(|(to, _)| *to > 0.0) {
        let end = to.min(ready);
        if end > at {
            pieces.push(Piece { seconds: end - at, bytes: bytes.saturating_sub(moved) as f64 });
            (at, moved) = (end, bytes.max(moved));
        }
        if to >= ready {
            break;
        }
    }
    if ready > at {
        let bytes = figures.link.bytes_until_ready.saturating_sub(moved) as f64;
        pieces.push(Piece { seconds: ready - at, bytes });
    }
    pieces
}

/// Lets a fleet start what `figures` was measured of one node.
pub(crate) fn simulate(figures: &Figures, fleet: &Fleet) -> Outcome {
    let mut pieces = pieces(figures);
    let of_all = || figures.usage.values().map(crate::cgroup::Usage::cpu).sum();
    let cpu: f64 = figures.cpu_until_ready.unwrap_or_else(of_all);
    if let Some(cores) = fleet.shared_cores {
        // All starts together want so many cores; where they are more than there are, all wait.
        let wanted = fleet.nodes as f64 * cpu / figures.ready.max(1e-3);
        let stretch = (wanted / cores).max(1.0);
        pieces.iter_mut().for_each(|piece| piece.seconds *= stretch);
    }
    let bytes: f64 = pieces.iter().map(|piece| piece.bytes).sum();
    let mut rng = Rng(fleet.seed);
    let starts: Vec<f64> = (0..fleet.nodes).map(|_| rng.share() * fleet.spread).collect();
    let mut ready = match fleet.peers {
        false => share(&pieces, &starts, fleet.egress, fleet.node_link),
        true => {
            // The registry sends everything once; a piece reaches the last node by as many hops as a
            // tree of nodes is high, each the time of that piece on a node's link.
            let hops = (fleet.nodes as f64).log2().ceil().max(0.0);
            let rate = fleet.node_link.min(fleet.egress);
            let largest = pieces.iter().map(|piece| piece.bytes).fold(0.0, f64::max);
            let delay = hops * largest.min(PEER_PIECE) / rate;
            let alone = share(&pieces, &[0.0], fleet.egress, rate);
            let alone = alone.first().copied().unwrap_or(0.0);
            starts.iter().map(|_| alone + delay).collect()
        }
    };
    ready.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((ready.len() as f64 * share).ceil() as usize).clamp(1, ready.len().max(1)) - 1;
        ready.get(index).copied().unwrap_or(0.0)
    };
    let copies = if fleet.peers { 1.0 } else { fleet.nodes as f64 };
    Outcome { p50: at(0.5), p99: at(0.99), egress_bytes: bytes * copies }
}

/// Bytes that a peer passes on at once.
const PEER_PIECE: f64 = 8e6;

/// Seconds from its start until each node is ready, when all share `egress` evenly and none takes more
/// than `node_link`.
///
/// Every transfer in progress gets the same rate, so one clock of bytes counts for all of them: a
/// transfer is over when that clock has gone on by its length.
fn share(pieces: &[Piece], starts: &[f64], egress: f64, node_link: f64) -> Vec<f64> {
    let mut ready = vec![0.0; starts.len()];
    let mut begins: BinaryHeap<Reverse<(Key, usize, usize)>> =
        starts.iter().enumerate().map(|(node, at)| Reverse((Key(*at), node, 0))).collect();
    // Transfers by the reading of the clock at which they are over, and what else they wait for.
    let mut transfers: BinaryHeap<Reverse<(Key, usize, usize, Key)>> = BinaryHeap::new();
    let (mut now, mut clock) = (0.0, 0.0);
    loop {
        let rate = node_link.min(egress / transfers.len().max(1) as f64);
        let over = transfers.peek().map(|Reverse((end, ..))| now + (end.0 - clock).max(0.0) / rate);
        let begin = begins.peek().map(|Reverse((at, ..))| at.0);
        let at = match (over, begin) {
            (None, None) => return ready,
            (Some(over), None) => over,
            (None, Some(begin)) => begin,
            (Some(over), Some(begin)) => over.min(begin),
        };
        if !transfers.is_empty() {
            clock += (at - now) * rate;
        }
        now = at;
        if over.is_some_and(|over| over <= at) {
            if let Some(Reverse((_, node, piece, earliest))) = transfers.pop() {
                begins.push(Reverse((Key(now.max(earliest.0)), node, piece + 1)));
            }
        } else if let Some(Reverse((_, node, piece))) = begins.pop() {
            match pieces.get(piece) {
                None => ready[node] = now - starts[node],
                Some(Piece { seconds, bytes }) if *bytes == 0.0 => {
                    begins.push(Reverse((Key(now + seconds), node, piece + 1)));
                }
                Some(Piece { seconds, bytes }) => {
                    transfers.push(Reverse((Key(clock + bytes), node, piece, Key(now + seconds))));
                }
            }
        }
    }
}

/// A time or a reading of the clock; never NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A fleet of one size, with one subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    workload: String,
    subject: String,
    nodes: usize,
    alone: Outcome,
    with_peers: Outcome,
}

/// Every workload and subject of a result file with every number of nodes.
pub(crate) fn table(results: &Results, fleet: &Fleet, nodes: &[usize]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for workload in &results.head.workloads {
        for subject in &results.head.subjects {
            let Some(figures) = results.typical(&workload.name, &subject.name) else { continue };
            for nodes in nodes.iter().copied() {
                let fleet = Fleet { nodes, ..*fleet };
                rows.push(Row {
                    workload: workload.name.clone(),
                    subject: subject.name.clone(),
                    nodes,
                    alone: simulate(figures, &fleet),
                    with_peers: simulate(figures, &Fleet { peers: true, ..fleet }),
                });
            }
        }
    }
    ensure!(!rows.is_empty(), "the results have no run that counts");
    Ok(rows)
}

pub(crate) fn text(rows: &[Row], fleet: &Fleet) -> String {
    let mut text = assumptions(fleet);
    let _ = writeln!(
        text,
        "{:<12} {:<24} {:>6} {:>9} {:>9} {:>12} {:>12} {:>12}",
        "workload",
        "subject",
        "nodes",
        "p50 s",
        "p99 s",
        "registry GB",
        "peers: p99",
        "registry GB"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<12} {:<24} {:>6} {:>9.2} {:>9.2} {:>12.3} {:>12.2} {:>12.3}",
            row.workload,
            row.subject,
            row.nodes,
            row.alone.p50,
            row.alone.p99,
            row.alone.egress_bytes / 1e9,
            row.with_peers.p99,
            row.with_peers.egress_bytes / 1e9
        );
    }
    text
}

/// What a reader must know to judge the figures.
fn assumptions(fleet: &Fleet) -> String {
    let mut text = String::new();
    let mbit = |rate: f64| rate * 8e-6;
    let _ = writeln!(
        text,
        "assumed: registry sends {:.0} Mbit/s in all, shared evenly; a node takes {:.0} Mbit/s; nodes \
         begin within {} s (seed {});",
        mbit(fleet.egress),
        mbit(fleet.node_link),
        fleet.spread,
        fleet.seed
    );
    text += "every node does what the measured one did, in the same order, with cores of its own; a moment \
             of it lasts as measured, or as its bytes need;\nwith peers, the registry sends each byte once, \
             nodes pass pieces of 8 MB on as soon as they have them, along a tree, at the speed of a node's \
             link;\nrequests, round trips and retries cost what they cost the measured node\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::LinkUse;

    fn figures() -> Figures {
        // Two seconds of 10 MB each, then one of computing.
        Figures {
            ready: 3.0,
            moved: vec![(0.0, 0), (1.0, 10_000_000), (2.0, 20_000_000), (3.0, 20_000_000)],
            link: LinkUse { bytes_until_ready: 20_000_000, ..LinkUse::default() },
            ..Figures::default()
        }
    }

    fn fleet(nodes: usize, egress: f64) -> Fleet {
        Fleet {
            nodes,
            egress,
            node_link: 1e9,
            spread: 0.0,
            shared_cores: None,
            peers: false,
            seed: 1,
        }
    }

    #[test]
    fn one_node_does_what_was_measured() {
        let outcome = simulate(&figures(), &fleet(1, 1e9));
        assert!((outcome.p50 - 3.0).abs() < 1e-9, "{outcome:?}");
        assert_eq!(outcome.egress_bytes, 20e6);
    }

    #[test]
    fn registry_is_shared() {
        // 100 nodes want 2 GB of a registry that sends 100 MB/s: 20 s, and a second of computing.
        let outcome = simulate(&figures(), &fleet(100, 100e6));
        assert!((outcome.p99 - 21.0).abs() < 0.2, "{outcome:?}");
        assert!((outcome.p50 - 21.0).abs() < 0.2, "{outcome:?}");
        let peers = simulate(&figures(), &Fleet { peers: true, ..fleet(100, 100e6) });
        assert!(peers.p99 < 5.0 && peers.egress_bytes == 20e6, "{peers:?}");
    }

    #[test]
    fn same_seed_same_outcome() {
        let spread = Fleet { spread: 5.0, ..fleet(1000, 100e6) };
        assert_eq!(simulate(&figures(), &spread), simulate(&figures(), &spread));
        let other = simulate(&figures(), &Fleet { seed: 2, ..spread });
        assert_ne!(simulate(&figures(), &spread).p50, other.p50);
    }

    #[test]
    fn cores_that_are_shared_are_waited_for() {
        let mut figures = figures();
        let usage = crate::cgroup::Usage { user: 3.0, ..Default::default() };
        figures.usage.insert("workload".to_owned(), usage);
        let fleet = Fleet { shared_cores: Some(2.0), ..fleet(4, 1e9) };
        assert!((simulate(&figures, &fleet).p50 - 6.0).abs() < 1e-6);
        // What the program does once it is ready is waited for by nobody.
        figures.cpu_until_ready = Some(1.5);
        assert!((simulate(&figures, &fleet).p50 - 3.0).abs() < 1e-6);
    }
}
