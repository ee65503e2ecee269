//! containerd's blobs: looked up, read, labelled.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::SystemTime;

use spanfs_layer::oci::Descriptor;
use spanfs_layer::{Digest, Hasher};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Client, ClientError};
use crate::grpc::MESSAGE_BYTES_MAX;
use crate::grpc::proto::content as proto;
use proto::content_client::ContentClient;

/// The blobs of one namespace.
#[derive(Clone, Debug)]
pub struct ContentStore {
    pub(super) client: Client,
}

/// What containerd knows of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When it was written.
    pub created: SystemTime,
    /// Its labels in this namespace.
    pub labels: BTreeMap<String, String>,
}

impl ContentStore {
    pub(super) fn service(&self) -> ContentClient<Channel> {
        ContentClient::new(self.client.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// What is known of a blob; `None` if it is not there.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, ClientError> {
        let request = proto::InfoRequest { digest: digest.to_string() };
        let mut service = self.service();
        let what = format!("looking up blob {digest}");
        let found =
            self.client.call(&what, request, |it| async move { service.info(it).await }).await;
        match found {
            Ok(found) => read_info(found.info.unwrap_or_default()).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All blobs that a filter of containerd's language selects; no filter selects all.
    pub async fn list(&self, filters: &[&str]) -> Result<Vec<ContentInfo>, ClientError> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = self.client.request(proto::ListContentRequest { filters }, None);
        let mut service = self.service();
        let what = "listing blobs";
        let mut stream = self.client.in_time(what, service.list(request)).await?.into_inner();
        let mut found = Vec::new();
        while let Some(some) = self.client.in_time(what, stream.message()).await? {
            for info in some.info {
                // Digests of algorithms that we don't know name nothing that we could use.
                found.extend(read_info(info).ok());
            }
        }
        Ok(found)
    }

    /// Set labels of a blob; an empty value takes one away.
    pub async fn label(
        &self,
        digest: &Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ClientError> {
        let info = proto::Info {
            digest: digest.to_string(),
            labels: labels.clone(),
            ..proto::Info::default()
        };
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = proto::UpdateRequest { info: Some(info), update_mask };
        let mut service = self.service();
        let what = format!("labelling blob {digest}");
        self.client.call(&what, request, |it| async move { service.update(it).await }).await?;
        Ok(())
    }

    /// Delete a blob from this namespace. False if it was not there.
    pub async fn delete(&self, digest: &Digest) -> Result<bool, ClientError> {
        let request = proto::DeleteContentRequest { digest: digest.to_string() };
        let mut service = self.service();
        let what = format!("deleting blob {digest}");
        let done =
            self.client.call(&what, request, |it| async move { service.delete(it).await }).await;
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Read a range of a blob, which must lie within it.
    pub async fn read(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<ReadStream, ClientError> {
        let what = format!("reading bytes {}..{} of blob {digest}", range.start, range.end);
        let argument = |value: u64| {
            i64::try_from(value).map_err(|_| ClientError::Argument {
                what: "range of a blob",
                reason: format!("{value} is too large"),
            })
        };
        let left = range.end.saturating_sub(range.start);
        let request = proto::ReadContentRequest {
            digest: digest.to_string(),
            offset: argument(range.start)?,
            size: argument(left)?,
        };
        let client = self.client.clone();
        // 0 would mean all the rest.
        let stream = match left {
            0 => None,
            _ => {
                let mut service = self.service();
                let answer = service.read(client.request(request, None));
                Some(client.in_time(&what, answer).await?.into_inner())
            }
        };
        Ok(ReadStream { client, what, stream, read: 0, left })
    }

    /// A range of a blob in memory.
    pub async fn range(&self, digest: &Digest, range: Range<u64>) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        let mut stream = self.read(digest, range).await?;
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// A small blob, whole and checked against its digest.
    pub async fn bytes(&self, digest: &Digest, len_max: u64) -> Result<Vec<u8>, ClientError> {
        let what = || format!("reading blob {digest}");
        let Some(info) = self.info(digest).await? else {
            let message = format!("content {digest}: not found");
            return Err(ClientError::of(&what(), &tonic::Status::not_found(message)));
        };
        if info.size > len_max {
            return Err(ClientError::TooLarge { digest: *digest, found: info.size, max: len_max });
        }
        let bytes = self.range(digest, 0..info.size).await?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let found = hasher.finish();
        if found == *digest {
            return Ok(bytes);
        }
        let (expected, found) = (digest.to_string(), found.to_string());
        Err(ClientError::Corrupt { what: what(), expected, found })
    }

    /// Read a whole blob from a thread that may block. Not checked: whoever reads it hashes it.
    pub async fn reader(&self, blob: &Descriptor) -> Result<StreamReader, ClientError> {
        let mut stream = self.read(&blob.digest, 0..blob.size).await?;
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        Handle::current().spawn(async move {
            loop {
                let piece = stream.next().await;
                let last = !matches!(piece, Ok(Some(_)));
                // Whoever read has gone, or knows the end.
                let Some(piece) = piece.transpose() else { return };
                if sender.send(piece).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(StreamReader { receiver, piece: Vec::new(), at: 0 })
    }
}

/// Messages of 1 MiB between the connection and a blocking reader.
const PIECES_AHEAD: usize = 4;

/// Bytes of a blob as containerd sends them.
#[derive(Debug)]
pub struct ReadStream {
    client: Client,
    what: String,
    stream: Option<Streaming<proto::ReadContentResponse>>,
    read: u64,
    left: u64,
}

impl ReadStream {
    /// The next bytes; `None` at the end of the range, never before it.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            let Some(stream) = &mut self.stream else { return Ok(None) };
            let message = self.client.in_time(&self.what, stream.message()).await?;
            let corrupt = |expected: String, found: String| ClientError::Corrupt {
                what: self.what.clone(),
                expected,
                found,
            };
            let Some(message) = message else {
                self.stream = None;
                let missing = format!("the end after {} bytes", self.read);
                return match self.left {
                    0 => Ok(None),
                    left => Err(corrupt(format!("{left} more bytes"), missing)),
                };
            };
            if u64::try_from(message.offset) != Ok(self.read) {
                let found = format!("a piece at {}", message.offset);
                return Err(corrupt(format!("the piece at {}", self.read), found));
            }
            let len = message.data.len() as u64;
            let Some(left) = self.left.checked_sub(len) else {
                return Err(corrupt(format!("at most {} bytes", self.left), format!("{len}")));
            };
            self.left = left;
            self.read += len;
            if len > 0 {
                return Ok(Some(message.data));
            }
        }
    }
}

/// A blob for threads that block. Never use it on a thread of the runtime.
#[derive(Debug)]
pub struct StreamReader {
    receiver: mpsc::Receiver<Result<Vec<u8>, ClientError>>,
    piece: Vec<u8>,
    at: usize,
}

impl io::Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece.map_err(io::Error::other)?, 0),
                None => return Ok(0),
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let count = io::Read::read(&mut &rest[..], buffer)?;
        self.at += count;
        Ok(count)
    }
}

fn read_info(info: proto::Info) -> Result<ContentInfo, ClientError> {
    let corrupt = |expected: &str, found: String| ClientError::Corrupt {
        what: "reading what containerd knows of a blob".to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let digest = info.digest.parse().map_err(|_| corrupt("a digest", info.digest.clone()))?;
    let size = u64::try_from(info.size).map_err(|_| corrupt("a size", info.size.to_string()))?;
    let created = info.created_at.and_then(|time| SystemTime::try_from(time).ok());
    let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(ContentInfo { digest, size, created, labels: info.labels })
}
