//! TLS without sockets: rustls through its unbuffered API, with one large buffer of ciphertext that
//! is decrypted in place, and one copy into the memory of the want.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use crate::memory::copy_prefix;
use crate::plan::{Failure, FailureKind};

/// Measured: 16 KiB a receive took 67k system calls per GB, 256 KiB took 2k.
const RAW_LEN: usize = 256 << 10;

/// When less room than this is left, what is there moves to the front.
const RAW_ROOM_MIN: usize = 128 << 10;

pub(crate) struct Tls {
    connection: UnbufferedClientConnection,
    /// Ciphertext at `start..end`.
    raw: BytesMut,
    start: usize,
    end: usize,
    /// Plaintext of a record that crossed the end of the caller's memory, from `over_at` on.
    over: Vec<u8>,
    over_at: usize,
    established: bool,
    closed: bool,
}

impl Tls {
    pub(crate) fn new(config: &Arc<ClientConfig>, server_name: &str) -> Result<Self, Failure> {
        let refuse = |what: String| Failure::transport(format!("TLS to {server_name}: {what}"));
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|error| refuse(error.to_string()))?;
        let connection = UnbufferedClientConnection::new(http1_only(config), name)
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            connection,
            raw: BytesMut::zeroed(RAW_LEN),
            start: 0,
            end: 0,
            over: Vec::new(),
            over_at: 0,
            established: false,
            closed: false,
        })
    }

    /// The handshake is done.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// The peer ended the stream properly.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// No decrypted byte waits to be pulled.
    pub(crate) fn is_drained(&self) -> bool {
        self.over_at == self.over.len() && self.start == self.end
    }

    /// Ciphertext received and not decrypted yet, in bytes.
    pub(crate) fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Lend the ciphertext buffer for a receive at the position returned.
    pub(crate) fn lend(&mut self) -> (BytesMut, usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start > 0 && RAW_LEN - self.end < RAW_ROOM_MIN {
            self.raw.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        (std::mem::take(&mut self.raw), self.end)
    }

    /// Take the buffer back with so many bytes more.
    pub(crate) fn restore(&mut self, raw: BytesMut, received: usize) {
        self.raw = raw;
        self.end = self.raw.len().min(self.end + received);
    }

    /// Encrypt a request.
    pub(crate) fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let raw = self.raw.get_mut(self.start..self.end).unwrap_or_default();
        let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(raw);
        let ConnectionState::WriteTraffic(mut writer) = state.map_err(distrust)? else {
            return Err(Failure::transport("TLS: the connection takes no request now"));
        };
        let at = out.len();
        // A record adds less than 64 bytes to each 16 KiB.
        let mut room = plain.len() + 64 + plain.len() / 128;
        loop {
            out.resize(at + room, 0);
            match writer.encrypt(plain, out.get_mut(at..).unwrap_or_default()) {
                Ok(len) => {
                    out.truncate(at + len);
                    self.start += discard;
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) if size.required_size > room => {
                    room = size.required_size;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Decrypt into `plain` what is there, and return its length; less than `plain` holds means that
    /// more ciphertext is needed. What TLS itself has to say is added to `out`.
    pub(crate) fn pull(&mut self, plain: &mut [u8], out: &mut Vec<u8>) -> Result<usize, Failure> {
        let mut count = self.pull_over(plain);
        while count < plain.len() || !self.established {
            let raw = self.raw.get_mut(self.start..self.end).unwrap_or_default();
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(raw);
            let mut more = true;
            match state.map_err(distrust)? {
                ConnectionState::ReadTraffic(mut reader) => {
                    while let Some(record) = reader.next_record() {
                        let record = record.map_err(failed)?;
                        discard += record.discard;
                        let room = plain.get_mut(count..).unwrap_or_default();
                        let fits = record.payload.len().min(room.len());
                        let (now, later) = record.payload.split_at(fits);
                        count += copy_prefix(room, now);
                        self.over.extend_from_slice(later);
                    }
                }
                ConnectionState::EncodeTlsData(mut encoder) => encode(&mut encoder, out)?,
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::WriteTraffic(_) => {
                    more = discard > 0 && self.established;
                    self.established = true;
                }
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    self.closed = true;
                    more = false;
                }
                ConnectionState::BlockedHandshake => more = false,
                other => return Err(Failure::transport(format!("TLS: unforeseen {other:?}"))),
            }
            self.start += discard;
            if !more {
                break;
            }
        }
        if self.start == 0 && self.end == RAW_LEN && count == 0 {
            return Err(Failure::transport(format!("TLS: a message exceeds {RAW_LEN} bytes")));
        }
        Ok(count)
    }

    fn pull_over(&mut self, plain: &mut [u8]) -> usize {
        let waiting = self.over.get(self.over_at..).unwrap_or_default();
        let count = copy_prefix(plain, waiting);
        self.over_at += count;
        if self.over_at == self.over.len() {
            self.over.clear();
            self.over_at = 0;
        }
        count
    }
}

fn encode(
    encoder: &mut rustls::unbuffered::EncodeTlsData<'_, rustls::client::ClientConnectionData>,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let at = out.len();
    let mut room = 1024;
    loop {
        out.resize(at + room, 0);
        match encoder.encode(out.get_mut(at..).unwrap_or_default()) {
            Ok(len) => {
                out.truncate(at + len);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) if size.required_size > room => {
                room = size.required_size;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// The configuration, speaking nothing but HTTP/1.1.
fn http1_only(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let http1 = vec![b"http/1.1".to_vec()];
    if config.alpn_protocols == http1 {
        return Arc::clone(config);
    }
    let mut own = ClientConfig::clone(config);
    own.alpn_protocols = http1;
    Arc::new(own)
}

/// A peer that is not who it claims to be won't be on the next try either.
fn distrust(error: rustls::Error) -> Failure {
    let kind = match &error {
        rustls::Error::InvalidCertificate(_) => FailureKind::Untrusted,
        _ => FailureKind::Transport,
    };
    Failure::new(kind, format!("TLS: {error}"))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::transport(format!("TLS: {error}"))
}
