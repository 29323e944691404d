//! TLS for runners: certificates from files, read again when the files change.
//!
//! A connection keeps what it began with, so another certificate cuts nobody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::telemetry::labels::Reload;
use crate::telemetry::metrics;

/// How often to look whether the files have changed: soon enough for who waits for it, and three small reads.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where certificates are, as PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain that runners are shown.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities one of which must have signed what a runner shows; none: it need not show anything.
    pub client_ca: Option<PathBuf>,
}

/// Certificates that follow their files.
pub struct Tls {
    files: TlsFiles,
    /// What was read last, be it good or not.
    read: Result<Contents, TlsError>,
    current: watch::Sender<Arc<ServerConfig>>,
}

/// What connections that begin now use.
pub(super) type Current = watch::Receiver<Arc<ServerConfig>>;

/// Certificates that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct TlsError {
    file: PathBuf,
    reason: String,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

// === impl Tls ===

impl Tls {
    /// Certificates as they are now.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or what is in it is of no use.
    pub async fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = Contents::read(&files).await?;
        let current = watch::Sender::new(Arc::new(contents.config(&files)?));
        Ok(Self { files, read: Ok(contents), current })
    }

    pub(super) fn current(&self) -> Current {
        self.current.subscribe()
    }

    /// Follows the files until the pod has stopped. What cannot be used is told and changes nothing.
    pub(super) async fn follow(&mut self, stopped: &CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let read = Contents::read(&self.files).await;
            if read == self.read {
                continue;
            }
            match read.as_ref().map_err(TlsError::clone).and_then(|contents| contents.config(&self.files)) {
                Ok(config) => {
                    self.current.send_replace(Arc::new(config));
                    metrics().tls_reloads_total.of(Reload::Done).increment(1);
                    info!(certificate = %self.files.certificate.display(), "certificates read again");
                }
                // Between two writes of a pair that does not fit together this is as it should be, and over at the next look.
                Err(error) => {
                    metrics().tls_reloads_total.of(Reload::Failed).increment(1);
                    error!(%error, "certificates have changed and cannot be used; the last good ones stay");
                }
            }
            self.read = read;
        }
    }
}

// === impl TlsError ===

impl TlsError {
    fn new(file: &Path, reason: &dyn ToString) -> Self {
        Self { file: file.to_owned(), reason: reason.to_string() }
    }
}

// === impl Contents ===

impl Contents {
    async fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = async |file: &Path| tokio::fs::read(file).await.map_err(|error| TlsError::new(file, &error));
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
            client_ca: match &files.client_ca {
                Some(file) => Some(read(file).await?),
                None => None,
            },
        })
    }

    fn config(&self, files: &TlsFiles) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|error| TlsError::new(&files.key, &what(&error, "private key")))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| TlsError::new(&files.certificate, &error))?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(file), Some(pem)) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file, pem)? {
                    roots.add(certificate).map_err(|error| TlsError::new(file, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::new(file, &error))?)
            }
            _ => builder.with_no_client_auth(),
        };
        // Refuses a key that is not the certificate's.
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|error| TlsError::new(&files.certificate, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| TlsError::new(file, &what(&error, "certificate")))?;
    if all.is_empty() { Err(TlsError::new(file, &"holds no certificate")) } else { Ok(all) }
}

/// What is wrong, without what was read: it may be a key.
fn what(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("holds no {wanted}"),
        _ => "is not PEM".to_owned(),
    }
}
