//! From the builder's working state to the tree: late hard links, order, link counts.

use alloc::vec::Vec;

use super::assemble::Assembler;
use super::builder::{ROOT, Slot, TreeBuilder};
use super::{Fault, Inode, NodeKind, OPAQUE, PENDING, SPARSE, Tree, TreeError, WHITEOUT};

/// Number of an inode that has none yet.
const UNNUMBERED: u32 = u32::MAX;

impl TreeBuilder {
    /// The tree of all entries pushed.
    pub fn finish(mut self) -> Result<Tree, TreeError> {
        let names = Names::group(&self.slots, self.inodes.len());
        let mut numbers = alloc::vec![UNNUMBERED; self.inodes.len()];
        // Old numbers in the order of the new ones: also the queue of a breadth-first walk.
        let mut order: Vec<u32> = Vec::with_capacity(self.inodes.len());
        let mut out = Assembler::new(self.inodes.len(), self.slots.len(), self.text.len());
        let mut sorted: Vec<u32> = Vec::new();
        self.number(&mut out, ROOT, 0, &mut numbers, &mut order).map_err(limit)?;
        let mut next = 0;
        while let Some(&directory) = order.get(next) {
            let number = next as u32;
            next += 1;
            if !self.inode(directory).is_some_and(|inode| inode.is_directory()) {
                continue;
            }
            self.sort(names.of(directory), &mut sorted);
            let first = out.entry_count();
            let mut subdirectories = 0;
            for &slot in &sorted {
                subdirectories += self.child(slot, number, &mut out, &mut numbers, &mut order)?;
            }
            out.close_directory(number, first, subdirectories);
        }
        Ok(out.finish(self.xattrs.into_sets(), self.options.opaque_xattr, 1))
    }

    /// Adds one name; the answer is 1 for a directory, else 0.
    fn child(
        &mut self,
        slot: u32,
        parent: u32,
        out: &mut Assembler,
        numbers: &mut [u32],
        order: &mut Vec<u32>,
    ) -> Result<u32, TreeError> {
        let Some(&slot) = self.slots.get(slot as usize) else { return Ok(0) };
        let inode = self.settle(slot.inode)?;
        if slot.whiteout
            && let Some(inode) = self.inodes.get_mut(inode as usize)
            && inode.is_directory()
        {
            inode.flags |= OPAQUE;
        }
        let number = self.number(out, inode, parent, numbers, order).map_err(limit)?;
        out.entry(self.slot_name(&slot), number).map_err(limit)?;
        let Some(inode) = out.inode_mut(number) else { return Ok(0) };
        if inode.kind() == NodeKind::Directory {
            return Ok(1);
        }
        inode.nlink += 1;
        Ok(0)
    }

    /// New number of an inode; its first name gives it one.
    fn number(
        &self,
        out: &mut Assembler,
        old: u32,
        parent: u32,
        numbers: &mut [u32],
        order: &mut Vec<u32>,
    ) -> Result<u32, Fault> {
        let (Some(number), Some(&inode)) =
            (numbers.get_mut(old as usize), self.inodes.get(old as usize))
        else {
            return Ok(UNNUMBERED);
        };
        if *number != UNNUMBERED {
            return Ok(*number);
        }
        let (first, count) = if inode.has(SPARSE) { inode.pair() } else { (0, 0) };
        let segments = self.segments.get(first as usize..).unwrap_or_default();
        let segments = segments.get(..count as usize).unwrap_or_default();
        let size = if inode.is_directory() { parent.into() } else { inode.size };
        let flags = inode.flags & !(PENDING | WHITEOUT);
        let placed = Inode { size, flags, nlink: 0, ..inode };
        *number = out.node(placed, self.link(&inode), segments)?;
        order.push(old);
        Ok(*number)
    }

    fn inode(&self, number: u32) -> Option<&Inode> {
        self.inodes.get(number as usize)
    }

    fn sort(&self, group: &[u32], sorted: &mut Vec<u32>) {
        let name = |&slot: &u32| self.slots.get(slot as usize).map(|slot| self.slot_name(slot));
        sorted.clear();
        sorted.extend_from_slice(group);
        sorted.sort_unstable_by(|left, right| name(left).cmp(&name(right)));
    }

    /// Inode behind a chain of late hard links.
    fn settle(&mut self, start: u32) -> Result<u32, TreeError> {
        let mut chain: Vec<usize> = Vec::new();
        let mut at = start;
        let settled = loop {
            let Some(inode) = self.inode(at).filter(|inode| inode.has(PENDING)) else { break at };
            let which = inode.place as usize;
            let Some(link) = self.pending.get(which) else { break at };
            if let Some(known) = link.inode {
                break known;
            }
            let refuse = |fault: fn(Vec<u8>) -> Fault| TreeError {
                entry: link.entry.clone(),
                fault: fault(link.target.clone()),
            };
            if chain.len() > self.pending.len() {
                return Err(refuse(|target| Fault::LinkCycle { target }));
            }
            let slot = self
                .find_path(&link.target)
                .map_err(|fault| TreeError { entry: link.entry.clone(), fault })?;
            match slot.and_then(|slot| self.slot_inode(slot)) {
                Some((_, inode)) if inode.is_directory() => {
                    return Err(refuse(|target| Fault::LinkToDirectory { target }));
                }
                Some((next, inode)) if !inode.has(WHITEOUT) => at = next,
                _ => return Err(refuse(|target| Fault::LinkMissing { target })),
            }
            chain.push(which);
        };
        for which in chain {
            if let Some(link) = self.pending.get_mut(which) {
                link.inode = Some(settled);
            }
        }
        Ok(settled)
    }
}

/// Slots by directory.
struct Names {
    /// Where the slots of each inode begin in `slots`; one more at the end.
    starts: Vec<u32>,
    slots: Vec<u32>,
}

impl Names {
    fn group(slots: &[Slot], inodes: usize) -> Self {
        let mut starts = alloc::vec![0u32; inodes + 2];
        for slot in slots {
            if let Some(count) = starts.get_mut(slot.directory as usize + 2) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut grouped = alloc::vec![0u32; slots.len()];
        for (number, slot) in (0..).zip(slots) {
            // Counts stand two places on, so that filling moves each start to its final value.
            let Some(at) = starts.get_mut(slot.directory as usize + 1) else { continue };
            if let Some(place) = grouped.get_mut(*at as usize) {
                *place = number;
            }
            *at += 1;
        }
        Self { starts, slots: grouped }
    }

    fn of(&self, directory: u32) -> &[u32] {
        let bound = |at: usize| self.starts.get(at).map_or(0, |&start| start as usize);
        let at = directory as usize;
        self.slots.get(bound(at)..bound(at + 1)).unwrap_or_default()
    }
}

fn limit(fault: Fault) -> TreeError {
    TreeError { entry: Vec::new(), fault }
}
