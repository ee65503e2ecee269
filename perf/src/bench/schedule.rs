//! In which order runs are made. Pure.

/// One run to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) workload: usize,
    pub(super) subject: usize,
    pub(super) round: usize,
    pub(super) is_warm_up: bool,
}

/// All rounds of a workload together, and in each round another subject first: whatever drifts,
/// drifts for all of them, and nobody always runs behind the same neighbour.
pub(super) fn slots(workloads: usize, subjects: usize, warm_up: usize, rounds: usize) -> Vec<Slot> {
    let mut slots = Vec::new();
    for workload in 0..workloads {
        for round in 0..rounds {
            for place in 0..subjects {
                // Every other round backwards, so that neighbours change too.
                let step = if round % 2 == 0 { place } else { subjects - place };
                let subject = (round + step) % subjects;
                slots.push(Slot { workload, subject, round, is_warm_up: round < warm_up });
            }
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_each_subject_and_begins_with_another() {
        let slots = slots(2, 3, 1, 4);
        assert_eq!(slots.len(), 24);
        let rounds: Vec<Vec<_>> = slots.chunks(3).map(<[Slot]>::to_vec).collect();
        for round in &rounds {
            let mut subjects: Vec<_> = round.iter().map(|slot| slot.subject).collect();
            subjects.sort_unstable();
            assert_eq!(subjects, [0, 1, 2]);
            assert_eq!(round[0].is_warm_up, round[0].round == 0);
        }
        let first: Vec<_> = rounds.iter().take(3).map(|round| round[0].subject).collect();
        assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
    }
}
