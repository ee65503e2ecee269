//! `spanfs cat`: one file of an image, without a mount.

use std::io::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use spanfs_cache::{Content, ReadError};
use spanfs_layer::UncompressedOffset;
use spanfs_layer::tree::NodeKind;

use crate::arguments::Cat;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::session::{Session, image_failure};
use crate::settings::{self, Facts};

/// Bytes written at once.
const PIECE_LEN: u64 = 1 << 20;
/// Asked for ahead of what is written: spans on all connections.
const AHEAD_LEN: u64 = 32 << 20;
/// The fetcher gives up long before.
const WAIT_MAX: Duration = Duration::from_secs(600);

pub(crate) fn cat(arguments: &Cat, output: &Output) -> Result<(), Failure> {
    let attempted = || format!("reading {} of {}", arguments.path, arguments.image.image);
    let facts = Facts::gather();
    let keeping = settings::keeping(&arguments.keep, &facts)?;
    let reaching = settings::reaching(&arguments.image.access, &facts)?;
    let session = Session::open(&arguments.image, None, None, &keeping, &reaching, output)?;
    let layers = &session.layers().layers;
    let tree = session.layers().merged().map_err(|error| image_failure(attempted(), &error))?;
    let node = tree
        .resolve(arguments.path.as_bytes())
        .map_err(|error| Failure::caused(Code::NotFound, attempted(), &error))?;
    let Some(node) = tree.node(node).filter(|node| node.kind() == NodeKind::Regular) else {
        return Err(Failure::new(Code::Failed, attempted(), "it is no regular file"));
    };
    let Some(layer) = layers.get(usize::from(node.layer())) else {
        unreachable!("a node of the merged tree comes from one of its layers")
    };
    let mut stdout = io::stdout().lock();
    let mut at = 0;
    let mut write = || -> Result<(), CatError> {
        for extent in node.extents() {
            zeros(&mut stdout, extent.file.0 - at)?;
            copy(&layer.content, extent.data.0..extent.data.0 + extent.len, &mut stdout)?;
            at = extent.file.0 + extent.len;
        }
        zeros(&mut stdout, node.size() - at)?;
        Ok(stdout.flush()?)
    };
    match write() {
        // Whoever reads through `head` has what he wanted.
        Err(CatError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(CatError::Write(error)) => Err(Failure::io(attempted(), &error)),
        Err(CatError::Read(error)) => {
            let corrupt = matches!(error, ReadError::Corrupt(_));
            let code = if corrupt { Code::Corrupt } else { Code::Failed };
            Err(Failure::caused(code, attempted(), &error))
        }
        Ok(()) => Ok(()),
    }
}

#[derive(Debug, thiserror::Error)]
enum CatError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] io::Error),
}

fn zeros(to: &mut impl io::Write, len: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), len), to).map(drop)
}

/// Write a range of a layer, asking ahead for what follows.
fn copy(
    content: &Arc<dyn Content>,
    range: Range<u64>,
    to: &mut impl io::Write,
) -> Result<(), CatError> {
    let mut buffer = vec![0; usize::try_from(PIECE_LEN).unwrap_or(usize::MAX)];
    let mut asked = range.start;
    let mut at = range.start;
    while at < range.end {
        if asked < range.end && asked < at + AHEAD_LEN / 2 {
            let end = range.end.min(at + AHEAD_LEN);
            content.fill(UncompressedOffset(asked)..UncompressedOffset(end), Box::new(|_| {}));
            asked = end;
        }
        let len = (range.end - at).min(PIECE_LEN);
        let piece = &mut buffer[..usize::try_from(len).unwrap_or(usize::MAX)];
        read(content, at, piece)?;
        to.write_all(piece)?;
        at += len;
    }
    Ok(())
}

fn read(content: &Arc<dyn Content>, at: u64, piece: &mut [u8]) -> Result<(), ReadError> {
    let offset = UncompressedOffset(at);
    let end = UncompressedOffset(at + piece.len() as u64);
    loop {
        match content.read_present(offset, piece)? {
            Some(count) if count == piece.len() => return Ok(()),
            Some(count) => {
                let (len, expected) = (content.len(), piece.len());
                return Err(ReadError::Corrupt(format!(
                    "{expected} bytes at {at} expected, found {count}: the layer has {len}"
                )));
            }
            None => {}
        }
        let (sender, reply) = sync_channel(1);
        content.fill(offset..end, Box::new(move |result| drop(sender.send(result))));
        let result = reply.recv_timeout(WAIT_MAX);
        result.map_err(|_| ReadError::Unavailable("nobody answered".to_owned()))??;
    }
}
