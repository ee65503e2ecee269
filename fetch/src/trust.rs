//! Whom a TLS connection believes, and how it proves itself.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// TLS settings of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM files whose certificates are believed beside those of the system.
    pub ca_files: Vec<PathBuf>,
    /// Certificate and key to show where the server asks; the key may stand in the same file.
    pub client_pairs: Vec<(PathBuf, PathBuf)>,
    /// Believe every certificate. The bytes of a blob are still checked against its digest.
    pub skip_verify: bool,
}

impl TlsOptions {
    /// True if anything differs from the system's trust.
    pub(crate) fn is_special(&self) -> bool {
        *self != Self::default()
    }

    /// The same trust towards another host, which must not see our certificates.
    pub(crate) fn without_identity(&self) -> Self {
        Self { client_pairs: Vec::new(), ..self.clone() }
    }
}

/// Settings that could not be turned into a TLS configuration.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// A PEM file.
    #[error("{path} has no usable {what}: {reason}")]
    File {
        /// File named in the configuration.
        path: PathBuf,
        /// Certificate or key.
        what: &'static str,
        /// Cause.
        reason: String,
    },
    /// The library.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// A configuration that is made when the first connection needs it: reading the system's roots costs
/// milliseconds that plain HTTP need not pay.
#[derive(Debug)]
pub(crate) struct Trust {
    options: TlsOptions,
    made: OnceLock<Result<Arc<ClientConfig>, TrustError>>,
}

impl Trust {
    pub(crate) fn new(options: TlsOptions) -> Self {
        Self { options, made: OnceLock::new() }
    }

    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, TrustError> {
        self.made.get_or_init(|| make(&self.options).map(Arc::new)).clone()
    }

    /// The option a user can turn when a certificate is not believed.
    pub(crate) fn advice(&self) -> String {
        match self.options.ca_files.as_slice() {
            [] => "name its CA as `ca` in hosts.toml or give a CA file".to_owned(),
            files => format!(
                "its CA is neither the system's nor in {}",
                files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

fn make(options: &TlsOptions) -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Setup(error.to_string()))?;
    let builder = if options.skip_verify {
        let believer = Believer(provider.signature_verification_algorithms);
        builder.dangerous().with_custom_certificate_verifier(Arc::new(believer))
    } else {
        builder.with_root_certificates(roots(&options.ca_files)?)
    };
    let mut config = if options.client_pairs.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(identities(options, &provider)?))
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(ca_files: &[PathBuf]) -> Result<RootCertStore, TrustError> {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    let mut roots = SYSTEM.get_or_init(system_roots).clone();
    for path in ca_files {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| bad_file(path, "certificate", &error))?;
        }
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's CA certificates can't be read");
    }
    // Systems carry a few certificates that the verifier won't take; the others are good.
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "read the system's CA certificates");
    roots
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let what = "certificate";
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad_file(path, what, &error))?;
    match found.is_empty() {
        true => Err(bad_file(path, what, &"it has none")),
        false => Ok(found),
    }
}

fn bad_file(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> TrustError {
    TrustError::File { path: path.to_owned(), what, reason: reason.to_string() }
}

fn identities(options: &TlsOptions, provider: &CryptoProvider) -> Result<Identities, TrustError> {
    let pair = |(certificate, key): &(PathBuf, PathBuf)| {
        let chain = certificates(certificate)?;
        let bad = |error: &dyn std::fmt::Display| bad_file(key, "private key", error);
        let der = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(&error))?;
        let key = provider.key_provider.load_private_key(der).map_err(|error| bad(&error))?;
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    };
    options.client_pairs.iter().map(pair).collect::<Result<_, _>>().map(Identities)
}

/// Shows the first certificate whose key can sign as the server wants.
#[derive(Debug)]
struct Identities(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identities {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|pair| pair.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: any certificate will do; the handshake must still be signed by its key.
#[derive(Debug)]
struct Believer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
