//! Opens sessions: always a fresh connection, so that a load balancer can choose another pod.

use std::time::{Duration, Instant};

use secrecy::ExposeSecret;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};

use super::{ClientError, Options};
use crate::proto::router_message::Kind as Down;
use crate::proto::runner_message::Kind as Up;
use crate::proto::runner_service_client::RunnerServiceClient;
use crate::proto::{Hello, RouterMessage, RunnerMessage, Welcome};

/// Name look-up, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// From the call until the Welcome; the router may ask Redis about 10,000 jobs before it answers.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
/// HTTP/2 pings, streams or not. Below the idle limits of common load balancers (60 s and more).
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest message: a payload of 1 MiB by default, and at most what gRPC's own default lets in.
const MESSAGE_MAX: usize = 4 << 20;
/// Messages between the driver and HTTP/2. Enough to fill tonic's 32 KiB write batches; what does not fit
/// waits in the driver's outbox, which holds back reading.
const QUEUE: usize = 1024;

/// Knows where the router is and who we are.
#[derive(Debug)]
pub(super) struct Dialer {
    endpoint: Endpoint,
    authorization: MetadataValue<Ascii>,
}

/// One welcomed session.
#[derive(Debug)]
pub(super) struct Session {
    /// Runner → router.
    pub(super) sender: mpsc::Sender<RunnerMessage>,
    /// Router → runner.
    pub(super) inbound: Streaming<RouterMessage>,
    /// What we said first.
    pub(super) hello: Hello,
    /// What the router said first.
    pub(super) welcome: Welcome,
    /// When it was welcomed.
    pub(super) since: Instant,
}

/// Why a session could not be opened, or ended; named by what follows from it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Try again, soon.
    #[error("{0}")]
    Away(String),
    /// Try again, slowly: the registry may not know the token yet.
    #[error("the router does not know this token: {0}")]
    TokenUnknown(String),
    /// Trying again will not help, unless the router changes.
    #[error("the router refused this runner's messages: {0}")]
    Invalid(String),
    /// Trying again will not help.
    #[error("the router refused this runner: {0}")]
    Denied(String),
}

// === impl Dialer ===

impl Dialer {
    /// Checks the URL, the token's characters and the CA file's contents.
    pub(super) fn new(options: &Options) -> Result<Self, ClientError> {
        let mut endpoint = Endpoint::from_shared(options.url.clone())
            .map_err(|error| ClientError::Options(format!("url: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        match endpoint.uri().scheme_str() {
            Some("https") => {
                let mut tls = match &options.ca_pem {
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                if let Some((certificate, key)) = &options.identity_pem {
                    tls = tls.identity(Identity::from_pem(certificate, key.expose_secret()));
                }
                let refused = |error| ClientError::Options(format!("certificates: {}", chain(&error)));
                endpoint = endpoint.tls_config(tls).map_err(refused)?;
            }
            Some("http") if options.ca_pem.is_none() && options.identity_pem.is_none() => {}
            Some("http") => return Err(ClientError::Options("certificates need an https:// url".to_owned())),
            _ => return Err(ClientError::Options("url: must begin with http:// or https://".to_owned())),
        }
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {}", options.token.expose_secret())
            .parse()
            .map_err(|_| ClientError::Options("token: must be printable ASCII".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Self { endpoint, authorization })
    }

    /// Connects.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        match timeout(CONNECT_TIMEOUT, self.endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(Failure::Away(chain(&error))),
            Err(_) => Err(Failure::Away("connecting took too long".to_owned())),
        }
    }

    /// Says Hello on a connection and waits for the Welcome.
    pub(super) async fn greet(&self, channel: Channel, hello: Hello) -> Result<Session, Failure> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let first = RunnerMessage { kind: Some(Up::Hello(hello.clone())) };
        sender.try_send(first).expect("the queue is new and open");
        let mut request = Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert("authorization", self.authorization.clone());
        let mut client = RunnerServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let call = async {
            let mut inbound = client.session(request).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, Status>((inbound, first.and_then(|message| message.kind)))
        };
        match timeout(WELCOME_TIMEOUT, call).await {
            Ok(Ok((inbound, Some(Down::Welcome(welcome))))) if welcome.lease_ms > 0 => {
                Ok(Session { sender, inbound, hello, welcome, since: Instant::now() })
            }
            Ok(Ok(_)) => Err(Failure::Away("the router did not begin with a proper Welcome".to_owned())),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Failure::Away("no Welcome in time".to_owned())),
        }
    }
}

// === impl Failure ===

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let text = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::Unauthenticated => Self::TokenUnknown(text),
            Code::PermissionDenied => Self::Denied(text),
            Code::InvalidArgument | Code::Unimplemented => Self::Invalid(text),
            _ => Self::Away(text),
        }
    }
}

/// An error with all its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
