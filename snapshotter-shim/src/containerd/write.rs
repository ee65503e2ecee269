//! Writing blobs into containerd's store.
//!
//! One stream a blob: opened under a reference, which is locked as long as the stream lives. Every
//! message gives the offset, as containerd throws away what was written where it is left at 0.

use std::collections::BTreeMap;
use std::time::Duration;

use spanfs_layer::Digest;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Client, ClientError, ContentStore, Fault};
use crate::grpc::proto::content as proto;

/// What became of a blob that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Written now.
    New,
    /// It was there.
    Present,
}

/// Bytes of one message; containerd takes 16 MiB.
const MESSAGE_LEN: usize = 1 << 20;
/// Wait for another writer of the same blob, and between two looks.
const LOCKED_TIME_MAX: Duration = Duration::from_secs(60);
const LOCKED_DELAY: Duration = Duration::from_millis(200);

impl ContentStore {
    /// Write a blob from memory, unless it is there; with these labels in either case.
    pub async fn put(
        &self,
        bytes: &[u8],
        labels: &BTreeMap<String, String>,
    ) -> Result<(Digest, Written), ClientError> {
        let digest = Digest::of(bytes);
        if self.info(&digest).await?.is_some() {
            self.label_present(&digest, labels).await?;
            return Ok((digest, Written::Present));
        }
        let Some(mut writer) = self.writer(&digest, bytes.len() as u64).await? else {
            self.label_present(&digest, labels).await?;
            return Ok((digest, Written::Present));
        };
        writer.write(bytes).await?;
        Ok((digest, writer.commit(labels).await?))
    }

    /// containerd drops the labels of a write that it did not need.
    pub(super) async fn label_present(
        &self,
        digest: &Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ClientError> {
        if labels.is_empty() { Ok(()) } else { self.label(digest, labels).await }
    }

    /// Begin to write a blob. `None` if it is there. Waits while somebody else writes the same blob.
    pub async fn writer(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<ContentWriter>, ClientError> {
        let writer = self.resume(&digest.to_string(), digest, size).await?;
        // What an earlier try left is written again from the start: an offset of 0 truncates it.
        Ok(writer.map(|writer| ContentWriter { offset: 0, ..writer }))
    }

    /// Go on with a blob where an earlier try under the same reference ended: see
    /// [`ContentWriter::offset`]. `None` if it is there. Waits while somebody else writes it.
    ///
    /// A blob that the store has for another namespace begins at its end: only the commit is missing.
    pub async fn resume(
        &self,
        reference: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<ContentWriter>, ClientError> {
        let deadline = Instant::now() + LOCKED_TIME_MAX;
        loop {
            match self.open(reference, digest, size).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(error) if error.fault() == Some(Fault::AlreadyExists) => return Ok(None),
                Err(error)
                    if error.fault() == Some(Fault::Unavailable) && Instant::now() < deadline =>
                {
                    tracing::debug!(%digest, %error, "another writer has the blob");
                    tokio::time::sleep(LOCKED_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Throw away what was written under a reference.
    pub async fn abort(&self, reference: &str) -> Result<(), ClientError> {
        let request = proto::AbortRequest { r#ref: reference.to_owned() };
        let mut service = self.service();
        let what = format!("throwing away ingest {reference:?}");
        let done =
            self.client.call(&what, request, |it| async move { service.abort(it).await }).await;
        match done {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn open(
        &self,
        reference: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<ContentWriter, ClientError> {
        let what = format!("writing blob {digest}");
        let total = i64::try_from(size).map_err(|_| ClientError::Argument {
            what: "size of a blob",
            reason: format!("{size} is too large"),
        })?;
        let (sender, receiver) = mpsc::channel(1);
        let first = proto::WriteContentRequest {
            action: proto::WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total,
            expected: digest.to_string(),
            ..proto::WriteContentRequest::default()
        };
        // There is room for one.
        drop(sender.try_send(first));
        let request = self.client.request(ReceiverStream::new(receiver), None);
        let mut service = self.service();
        let answers = self.client.in_time(&what, service.write(request)).await?.into_inner();
        let store = self.clone();
        let mut writer =
            ContentWriter { store, what, digest: *digest, total, offset: 0, sender, answers };
        writer.offset = writer.answer().await?.offset;
        if !(0..=total).contains(&writer.offset) {
            let (expected, found) = (format!("at most {total} bytes"), writer.offset.to_string());
            return Err(ClientError::Corrupt { what: writer.what, expected, found });
        }
        Ok(writer)
    }
}

/// A blob being written. Dropped before [`Self::commit`], what was written is kept for a while.
#[derive(Debug)]
pub struct ContentWriter {
    store: ContentStore,
    what: String,
    digest: Digest,
    total: i64,
    offset: i64,
    sender: mpsc::Sender<proto::WriteContentRequest>,
    answers: Streaming<proto::WriteContentResponse>,
}

impl ContentWriter {
    /// Where the next bytes belong.
    pub fn offset(&self) -> u64 {
        self.offset.cast_unsigned()
    }

    /// The next bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(MESSAGE_LEN) {
            self.send(proto::WriteContentRequest {
                action: proto::WriteAction::Write.into(),
                offset: self.offset,
                data: piece.to_vec(),
                ..proto::WriteContentRequest::default()
            })
            .await?;
            let answer = self.answer().await?;
            self.offset += piece.len() as i64;
            if answer.offset != self.offset {
                let expected = format!("{} bytes", self.offset);
                let found = format!("{} bytes", answer.offset);
                return Err(ClientError::Corrupt { what: self.what.clone(), expected, found });
            }
        }
        Ok(())
    }

    /// All is written: containerd checks digest and size, and the blob is there.
    pub async fn commit(
        mut self,
        labels: &BTreeMap<String, String>,
    ) -> Result<Written, ClientError> {
        let sent = self
            .send(proto::WriteContentRequest {
                action: proto::WriteAction::Commit.into(),
                offset: self.offset,
                total: self.total,
                expected: self.digest.to_string(),
                labels: labels.clone(),
                ..proto::WriteContentRequest::default()
            })
            .await;
        let answer = match sent {
            Ok(()) => self.answer().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(_) => Ok(Written::New),
            Err(error) if error.fault() == Some(Fault::AlreadyExists) => {
                self.store.label_present(&self.digest, labels).await?;
                Ok(Written::Present)
            }
            Err(error) => Err(error),
        }
    }

    /// Leave it as it is. When this returns, the reference is free: whoever aborts it earlier does so
    /// while containerd still writes there.
    pub async fn close(self) -> Result<(), ClientError> {
        let Self { store, what, sender, mut answers, .. } = self;
        drop(sender);
        while store.client.in_time(&what, answers.message()).await?.is_some() {}
        Ok(())
    }

    async fn send(&mut self, message: proto::WriteContentRequest) -> Result<(), ClientError> {
        let client: &Client = &self.store.client;
        let sent = async {
            // Where the stream has ended, its answer says why.
            drop(self.sender.send(message).await);
            Ok(())
        };
        client.in_time(&self.what, sent).await
    }

    async fn answer(&mut self) -> Result<proto::WriteContentResponse, ClientError> {
        let client: &Client = &self.store.client;
        let answer = client.in_time(&self.what, self.answers.message()).await?;
        answer.ok_or_else(|| ClientError::Corrupt {
            what: self.what.clone(),
            expected: "an answer".to_owned(),
            found: "the end of the stream".to_owned(),
        })
    }
}
