//! Where Redis is and how to log in, and the same in the library's words.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fred::rustls::pki_types::pem::PemObject;
use fred::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use fred::rustls::{ClientConfig, RootCertStore};
use fred::types::config::{ClusterDiscoveryPolicy, Config, ConnectionConfig, ReconnectError, TcpConfig, TlsConnector};
use secrecy::ExposeSecret;

use super::password::LogIn;
use super::{Password, RedisError};

/// How long a call may take before it counts as a timeout, unless the settings say otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);

/// Calls that may wait to be written, about 0.1 s of a busy pod: more would time out where they stand, and
/// their arguments fill memory. The library's default is no limit.
const WAITING_CALLS_MAX: usize = 10_000;
/// Where Redis is and how to log in.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `redis://`, `rediss://` (TLS), `redis-cluster://`, `redis-sentinel://…?sentinelServiceName=…`, their
    /// `rediss-` forms, or `redis+unix:///path/to/socket`. More nodes: `?node=host:port&node=…`.
    pub url: String,
    /// How long one call may take, and one attempt to connect.
    pub command_timeout: Duration,
    /// The ACL user; wins over one in the URL.
    pub username: Option<String>,
    /// Its password; wins over one in the URL.
    pub password: Option<Password>,
    /// PEM file with the certificate authorities to trust instead of the system's; for `rediss` only.
    pub ca_file: Option<PathBuf>,
    /// PEM files with the certificate to show and its key; for `rediss` only.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// How many replicas must have what [`call_durably`](super::Redis::call_durably) wrote before it is answered. Not in a
    /// cluster, where nothing says which node a call and the wait for it went to.
    pub replicas: u8,
}

impl RedisSettings {
    /// The defaults for a Redis at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            command_timeout: COMMAND_TIMEOUT,
            username: None,
            password: None,
            ca_file: None,
            identity: None,
            replicas: 0,
        }
    }
}

pub(super) fn connection_config(settings: &RedisSettings) -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: settings.command_timeout,
        internal_command_timeout: settings.command_timeout,
        // The default is 3: a reply lost after the write would run the command again.
        max_command_attempts: 1,
        max_command_buffer_len: WAITING_CALLS_MAX,
        reconnect_on_auth_error: true,
        tcp: TcpConfig { nodelay: Some(true), ..TcpConfig::default() },
        // What a server says that is no longer, or not yet, the one to talk to.
        reconnect_errors: vec![ReconnectError::ReadOnly, ReconnectError::MasterDown, ReconnectError::Loading],
        ..ConnectionConfig::default()
    }
}

/// The library's configuration. No error shows the URL: it may hold a password.
pub(super) fn config(settings: &RedisSettings) -> Result<Config, RedisError> {
    let (scheme, rest) = settings.url.split_once("://").unwrap_or_default();
    // The library takes any scheme for plain Redis, and for `rediss` it wants the system's certificates even
    // if others are given; so schemes and TLS are read here.
    let (scheme, tls) = match scheme {
        "redis" | "redis-cluster" | "redis-sentinel" | "redis+unix" => (scheme, false),
        "rediss" => ("redis", true),
        "rediss-cluster" => ("redis-cluster", true),
        "rediss-sentinel" => ("redis-sentinel", true),
        _ => {
            let known = "redis://, rediss://, redis-cluster://, redis-sentinel:// or redis+unix://";
            return Err(RedisError::Settings(format!("the URL must begin with {known}")));
        }
    };
    let mut config = Config::from_url(&format!("{scheme}://{rest}"))
        .map_err(|error| RedisError::Settings(format!("the URL is malformed: {}", error.details())))?;
    if tls {
        config.tls = Some(tls_connector(settings)?.into());
    }
    if config.server.is_clustered() {
        // After a failover the configured node may be the one that is gone.
        let policy = config.server.set_cluster_discovery_policy(ClusterDiscoveryPolicy::UseCache);
        debug_assert!(policy.is_ok(), "it is clustered");
    }
    if let Some(username) = &settings.username {
        config.username = Some(username.clone());
    }
    if let Some(password) = &settings.password {
        // The library would log in with it at sentinels too, which have passwords of their own.
        if config.server.is_sentinel() {
            let unread = |error| RedisError::Settings(format!("the password cannot be read: {error}"));
            config.password = Some(password.read().map_err(unread)?.expose_secret().to_owned());
        } else {
            let username = config.username.clone();
            config.credential_provider = Some(Arc::new(LogIn { username, password: password.clone() }));
        }
    }
    Ok(config)
}

fn tls_connector(settings: &RedisSettings) -> Result<TlsConnector, RedisError> {
    let mut roots = RootCertStore::empty();
    match &settings.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(path, &error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match &settings.identity {
        Some((certificate, key_file)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| unusable(key_file, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(certificate, &error))?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(config.into())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RedisError> {
    let all = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(|error| unusable(path, &error))?;
    if all.is_empty() { Err(unusable(path, &"holds no certificate")) } else { Ok(all) }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> RedisError {
    RedisError::Settings(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_url_is_understood() {
        let config = |url: &str| super::config(&RedisSettings::new(url)).unwrap();
        assert!(config("redis-cluster://a:1?node=b:2").server.is_clustered());
        assert_eq!(config("redis-cluster://a:1?node=b:2").server.hosts().len(), 2);
        assert!(config("redis-sentinel://a:1?sentinelServiceName=main").server.is_sentinel());
        assert!(config("redis+unix:///a/b").server.is_unix_socket());
        assert_eq!(config("redis://user:word@a:1/3").database, Some(3));
        assert!(config("redis://a").tls.is_none());
    }
}
