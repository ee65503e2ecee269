//! From a tree to the bytes of its index.

use alloc::vec::Vec;

use hashbrown::HashMap;

use super::content::{self, Chunks, DataCopy, DataFile};
use super::image::Image;
use super::inode::{self, Inode, Layout};
use super::lead::{self, Lead};
use super::superblock::{self, Superblock};
use super::{BLOCK, ErofsError, NO_BLOCK, SLOT, dirent, xattr};
use crate::tree::{Node, NodeId, NodeKind};
use crate::{Digest, Time, Tree};

/// A layer file as the index knows it.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Length in bytes, a multiple of 512: that of the tar, rounded up.
    pub len: u64,
    /// At most 64 bytes that tell it from others, such as a digest in hexadecimal.
    pub tag: &'a [u8],
}

/// The index of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The image, a multiple of 512 bytes long; that of [`write_ways`] has its [`Lead`]s behind it.
    pub bytes: Vec<u8>,
    /// What its layer files need beyond their tars; empty unless sparse files demand it. Until the
    /// copies are made these files, and only these, read as zeros.
    pub copies: Vec<DataCopy>,
    /// Length that each layer file must have before the image is mounted.
    pub data_lens: Vec<u64>,
}

/// Their slots must leave the root a number of 16 bits, also three times.
const DEVICES_MAX: usize = 4096;
/// By our policy: hundred times the largest index seen.
const INDEX_BYTES_MAX: u64 = 4 << 30;

/// Writes the index of a tree whose layer *n* has its tar in the layer file `devices[n]`.
///
/// The same tree and devices give the same bytes. The image is to be mounted with one `device=`
/// option for each of `devices`, in order.
pub fn write(tree: &Tree, devices: &[Device<'_>]) -> Result<Index, ErofsError> {
    write_devices(tree, devices, None)
}

/// The same, with all devices [`WAYS`] times: as many ways to the same layer file.
///
/// Small files lie in the first set, those of at least `large_len_min` bytes in the second, so that the
/// kernel may read them in another way. In the third lies nothing: an owner of the index may lead a
/// chunk there, by the [`Lead`]s that follow the image if it has one layer file. For that, no chunk is
/// larger than it must be. The image is to be mounted with the `device=` options of all, so many times.
pub fn write_ways(
    tree: &Tree,
    devices: &[Device<'_>],
    large_len_min: u64,
) -> Result<Index, ErofsError> {
    write_devices(tree, devices, Some(large_len_min))
}

/// Sets of devices in an index of [`write_ways`].
pub const WAYS: u16 = 3;

/// Devices that an index wants, by its first bytes (those before its first inode); `None` if it is none.
pub fn device_count(head: &[u8]) -> Option<u16> {
    superblock::device_count(head)
}

/// Length of the image in an index, by its first bytes: behind it are its [`Lead`]s.
pub fn image_len(head: &[u8]) -> Option<u64> {
    superblock::block_count(head).map(|blocks| u64::from(blocks) * BLOCK)
}

fn write_devices(
    tree: &Tree,
    devices: &[Device<'_>],
    apart: Option<u64>,
) -> Result<Index, ErofsError> {
    let files = check_devices(tree, devices)?;
    let sets = if apart.is_some() { usize::from(WAYS) } else { 1 };
    let epoch = most_frequent_mtime(tree);
    let mut writer = Writer {
        tree,
        apart,
        epoch,
        bodies: xattr::Bodies::collect(tree)?,
        files,
        copies: Vec::new(),
        shapes: Vec::with_capacity(tree.node_count() as usize),
        sparse: HashMap::new(),
        area_at: 0,
        at: (superblock::DEVICES_AT + sets * devices.len() * superblock::DEVICE_SLOT) as u64,
    };
    writer.lay_out()?;
    let max = INDEX_BYTES_MAX;
    let found = writer.at.next_multiple_of(BLOCK);
    if found > max {
        return Err(ErofsError::TooLarge { what: "index", found, max });
    }
    let mut image = Image::new(found as usize);
    let mut leads = writer.encode(&mut image);
    writer.seal(&mut image, &devices.repeat(sets));
    let data_lens = writer.files.iter().map(|file| file.len).collect();
    let mut bytes = image.bytes;
    lead::append(&mut leads, &mut bytes);
    Ok(Index { bytes, copies: writer.copies, data_lens })
}

fn check_devices(tree: &Tree, devices: &[Device<'_>]) -> Result<Vec<DataFile>, ErofsError> {
    let (found, needed) = (devices.len(), usize::from(tree.layer_count()));
    if found != needed || found > DEVICES_MAX {
        return Err(ErofsError::DeviceCount { found, needed, max: DEVICES_MAX });
    }
    (0..)
        .zip(devices)
        .map(|(device, &Device { len, tag })| check_device(device, len, tag))
        .collect()
}

fn check_device(device: u16, len: u64, tag: &[u8]) -> Result<DataFile, ErofsError> {
    if !len.is_multiple_of(BLOCK) || len / BLOCK >= u64::from(NO_BLOCK) {
        return Err(ErofsError::DeviceLength { device, len });
    }
    if tag.len() > superblock::TAG_LEN {
        let max = superblock::TAG_LEN;
        return Err(ErofsError::Tag { device, found: tag.len(), max });
    }
    Ok(DataFile { device, tar_len: len, len })
}

/// Inodes with the time of the superblock need half the space; of equally frequent times the
/// latest is taken.
fn most_frequent_mtime(tree: &Tree) -> Time {
    let mut counts: HashMap<Time, u32> = HashMap::new();
    for node in tree.nodes() {
        *counts.entry(node.mtime()).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|&(time, count)| (count, time));
    most.map_or(Time::default(), |(time, _)| time)
}

/// Where a node came to lie, and in which form.
#[derive(Clone, Copy)]
struct Shape {
    nid: u32,
    /// First whole block, or none.
    first_block: u32,
    size: u64,
    layout: Layout,
    is_extended: bool,
}

struct Writer<'a> {
    tree: &'a Tree,
    /// Length from which on files lie in the second set of devices, if there is one.
    apart: Option<u64>,
    epoch: Time,
    bodies: xattr::Bodies<'a>,
    files: Vec<DataFile>,
    copies: Vec<DataCopy>,
    /// By node number.
    shapes: Vec<Shape>,
    /// Chunks of the files that are not in one piece.
    sparse: HashMap<NodeId, Chunks>,
    /// Where shared attributes lie.
    area_at: u64,
    /// First free byte.
    at: u64,
}

impl<'a> Writer<'a> {
    /// Gives every node its place: the children of a directory together, behind its blocks.
    fn lay_out(&mut self) -> Result<(), ErofsError> {
        let tree = self.tree;
        if let Some(root) = tree.node(tree.root()) {
            self.place(&root)?;
        }
        self.area_at = self.at.next_multiple_of(4);
        self.bodies.place_area(self.area_at);
        self.at = self.area_at + self.bodies.area.len() as u64;
        for directory in tree.nodes().filter(|node| node.kind() == NodeKind::Directory) {
            self.place_blocks(directory.id());
            for (_, id) in tree.children(directory.id()) {
                if id.0 as usize == self.shapes.len()
                    && let Some(node) = tree.node(id)
                {
                    self.place(&node)?;
                }
            }
        }
        assert_eq!(
            self.shapes.len(),
            tree.node_count() as usize,
            "nodes are numbered breadth first"
        );
        Ok(())
    }

    fn place(&mut self, node: &Node<'a>) -> Result<(), ErofsError> {
        let size = match node.kind() {
            NodeKind::Directory => dirent::size(self.tree, node),
            _ => node.size(),
        };
        let is_extended = inode::needs_extended(node, size, self.epoch);
        let fixed = inode::len(is_extended) + self.bodies.of(node).len() as u64;
        let mut shape =
            Shape { nid: 0, first_block: NO_BLOCK, size, layout: Layout::Plain, is_extended };
        let mut behind = 0;
        match node.kind() {
            NodeKind::Directory | NodeKind::Symlink => {
                let tail = size % BLOCK;
                if tail > 0 && fixed % SLOT + tail <= BLOCK {
                    shape.layout = Layout::Inline;
                    behind = tail;
                }
            }
            NodeKind::Regular if size > 0 => {
                shape.layout = Layout::Chunks;
                let count = self.chunks(node)?;
                behind = fixed.next_multiple_of(8) - fixed + count * inode::CHUNK_INDEX_LEN;
            }
            _ => {}
        }
        self.at = self.at.next_multiple_of(SLOT);
        if shape.layout == Layout::Inline {
            self.fit_tail(node.kind(), fixed, behind);
        }
        shape.nid = (self.at / SLOT) as u32;
        self.at += fixed + behind;
        self.shapes.push(shape);
        if node.kind() == NodeKind::Symlink {
            self.place_blocks(node.id());
        }
        if self.at > INDEX_BYTES_MAX {
            let (found, max) = (self.at, INDEX_BYTES_MAX);
            return Err(ErofsError::TooLarge { what: "index", found, max });
        }
        Ok(())
    }

    /// Moves on until an inline tail fits into one block; with a symlink's go its inode and
    /// attributes, which older kernels want in the same block.
    fn fit_tail(&mut self, kind: NodeKind, fixed: u64, tail: u64) {
        while (self.at + fixed) % BLOCK + tail > BLOCK {
            self.at += SLOT;
        }
        let whole = fixed + tail;
        if kind == NodeKind::Symlink && whole <= BLOCK && self.at % BLOCK + whole > BLOCK {
            self.at = self.at.next_multiple_of(BLOCK);
        }
    }

    /// Reserves the whole blocks of a directory or symlink.
    fn place_blocks(&mut self, id: NodeId) {
        let Some(shape) = self.shapes.get_mut(id.0 as usize) else { return };
        let count = match shape.layout {
            Layout::Plain => shape.size.div_ceil(BLOCK),
            Layout::Inline => shape.size / BLOCK,
            Layout::Chunks => 0,
        };
        if count > 0 {
            self.at = self.at.next_multiple_of(BLOCK);
            shape.first_block = (self.at / BLOCK) as u32;
            self.at += count * BLOCK;
        }
    }

    /// Number of a file's chunks, which are remembered unless they are quickly found again.
    fn chunks(&mut self, node: &Node<'_>) -> Result<u64, ErofsError> {
        let bits_max = self.bits_max();
        let Some(file) = self.files.get_mut(usize::from(node.layer())) else {
            unreachable!("a tree of {} layers", self.tree.layer_count())
        };
        let chunks = content::chunks_of(node, bits_max, file, &mut self.copies)?;
        let count = chunks.count();
        if matches!(chunks.blocks, content::Blocks::Each(_)) {
            self.sparse.insert(node.id(), chunks);
        }
        Ok(count)
    }

    /// Writes all nodes; what comes out are the leads of all chunks that may be led elsewhere.
    fn encode(&self, image: &mut Image) -> Vec<Lead> {
        let (mut payload, mut leads) = (Vec::new(), Vec::new());
        let mut head = [0; inode::EXTENDED_LEN as usize];
        for (node, shape) in self.tree.nodes().zip(&self.shapes) {
            let body = self.bodies.of(&node);
            let chunks =
                if shape.layout == Layout::Chunks { self.chunks_again(&node) } else { None };
            let inode = Inode {
                node,
                nid: shape.nid,
                is_extended: shape.is_extended,
                layout: shape.layout,
                xattr_count: xattr::count(body),
                size: shape.size,
                union: union(&node, shape, chunks.as_ref()),
            };
            let mut at = shape.nid as usize * SLOT as usize;
            let len = inode.encode(&mut head);
            image.put(at, head.get(..len).unwrap_or_default());
            at += len;
            image.put(at, body);
            at += body.len();
            match node.kind() {
                NodeKind::Directory => {
                    let nid = |id: NodeId| {
                        self.shapes.get(id.0 as usize).map_or(0, |shape| shape.nid.into())
                    };
                    dirent::encode(self.tree, &node, nid, &mut payload);
                    debug_assert_eq!(payload.len() as u64, shape.size);
                    put_payload(image, shape, at, &payload);
                }
                NodeKind::Symlink => put_payload(image, shape, at, node.link()),
                _ => {}
            }
            if let Some(chunks) = chunks {
                let at = at.next_multiple_of(8);
                self.put_indexes(image, at, &node, &chunks, &mut leads);
            }
        }
        leads
    }

    fn chunks_again(&self, node: &Node<'_>) -> Option<Chunks> {
        if let Some(chunks) = self.sparse.get(&node.id()) {
            return Some(chunks.clone());
        }
        let file = self.files.get(usize::from(node.layer()))?;
        let mut file = DataFile { ..*file };
        content::chunks_of(node, self.bits_max(), &mut file, &mut Vec::new()).ok()
    }

    fn put_indexes(
        &self,
        image: &mut Image,
        mut at: usize,
        node: &Node<'_>,
        chunks: &Chunks,
        leads: &mut Vec<Lead>,
    ) {
        let is_apart = self.apart.is_some_and(|len_min| node.size() >= len_min);
        let first = if is_apart { self.tree.layer_count() } else { 0 };
        let device = first + node.layer() + 1;
        // Who leads knows one layer file.
        let in_tar = self.files.first().filter(|_| self.apart.is_some() && self.files.len() == 1);
        let tar_blocks = in_tar.map_or(0, |file| file.tar_len / BLOCK);
        let mut left = node.size();
        for block in chunks.blocks() {
            image.put(at + 2, &device.to_le_bytes());
            image.put(at + 4, &block.to_le_bytes());
            let len = left.min(1 << chunks.bits);
            left -= len;
            // Not of holes, nor of what only an index has behind the tar.
            if u64::from(block) < tar_blocks && chunks.bits <= lead::CHUNK_BITS {
                let (at, blocks) = (at as u32 + 2, len.div_ceil(BLOCK) as u16);
                leads.push(Lead { first_block: block, blocks, at, device });
            }
            at += inode::CHUNK_INDEX_LEN as usize;
        }
    }

    fn bits_max(&self) -> u32 {
        if self.apart.is_some() { lead::CHUNK_BITS } else { inode::CHUNK_BITS_MAX }
    }

    /// Writes what speaks of the image as a whole.
    fn seal(&self, image: &mut Image, devices: &[Device<'_>]) {
        image.put(self.area_at as usize, &self.bodies.area);
        let blocks = (image.bytes.len() as u64 / BLOCK) as u32;
        let root_nid = self.shapes.first().map_or(0, |shape| shape.nid);
        Superblock {
            root_nid: root_nid as u16,
            inodes: self.shapes.len() as u64,
            epoch_seconds: self.epoch.seconds,
            epoch_nanoseconds: self.epoch.nanoseconds,
            blocks,
            devices: devices.len() as u16,
        }
        .encode(image);
        let mut flat = blocks;
        let files = self.files.iter().cycle();
        for (number, (device, file)) in devices.iter().zip(files).enumerate() {
            let blocks = (file.len / BLOCK) as u32;
            superblock::put_device(image, number, device.tag, blocks, flat);
            flat = flat.saturating_add(blocks);
        }
        let uuid = Digest::of(&image.fold());
        superblock::put_uuid(image, uuid.as_bytes());
        superblock::put_checksum(image);
    }
}

fn union(node: &Node<'_>, shape: &Shape, chunks: Option<&Chunks>) -> u32 {
    if let Some(chunks) = chunks {
        return inode::CHUNK_INDEXES | (chunks.bits - super::BLOCK_BITS);
    }
    match node.kind() {
        NodeKind::CharDevice | NodeKind::BlockDevice => inode::encode_device(node.device()),
        NodeKind::Fifo => 0,
        _ => shape.first_block,
    }
}

/// Whole blocks where they were reserved, the tail behind the inode.
fn put_payload(image: &mut Image, shape: &Shape, behind: usize, payload: &[u8]) {
    let tail = if shape.layout == Layout::Inline { payload.len() % BLOCK as usize } else { 0 };
    let (blocks, tail) = payload.split_at(payload.len() - tail);
    if !blocks.is_empty() {
        image.put(shape.first_block as usize * BLOCK as usize, blocks);
    }
    image.put(behind, tail);
}
