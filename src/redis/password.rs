//! The password of Redis, read anew at each log-in, so that it can be changed while a pod runs.

use std::sync::Arc;
use std::{fmt, io};

use fred::error::{Error, ErrorKind};
use fred::types::config::{CredentialProvider, Server};
use secrecy::{ExposeSecret, SecretString};

/// A way to the password.
#[derive(Clone)]
pub struct Password(Arc<dyn Fn() -> io::Result<SecretString> + Send + Sync>);

/// Answers the library, whenever it logs in.
#[derive(Debug)]
pub(super) struct LogIn {
    pub(super) username: Option<String>,
    pub(super) password: Password,
}

// === impl Password ===

impl Password {
    /// One that is read whenever it is needed.
    pub fn read_by(read: impl Fn() -> io::Result<SecretString> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn read(&self) -> io::Result<SecretString> {
        (self.0)()
    }
}

impl From<SecretString> for Password {
    fn from(secret: SecretString) -> Self {
        Self::read_by(move || Ok(secret.clone()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

#[async_trait::async_trait]
impl CredentialProvider for LogIn {
    async fn fetch(&self, _server: Option<&Server>) -> Result<(Option<String>, Option<String>), Error> {
        let unread = |error: io::Error| Error::new(ErrorKind::Auth, format!("the password cannot be read: {error}"));
        let password = self.password.read().map_err(unread)?;
        Ok((self.username.clone(), Some(password.expose_secret().to_owned())))
    }
}
