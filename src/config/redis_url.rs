//! The URL of Redis: it may hold a password, so it shows only where it leads.

use std::fmt;

/// A Redis URL, such as `rediss://user:password@host:6379/0`. `Display` and `Debug` leave out user, password and
/// query.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// What a scheme is made of: one of these, then nothing, `-cluster` or `-sentinel`. With an `s`: over TLS.
const SCHEMES: [&str; 4] = ["redis", "rediss", "valkey", "valkeys"];

// === impl RedisUrl ===

impl RedisUrl {
    /// A URL with a scheme we know and, unless it names a socket, a host.
    pub(super) fn new(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let url = Self(text.to_owned());
        // A `/` or `?` in a password must be percent-encoded. If it is not, the password would pass for a host or a
        // path, and be shown.
        let clean = !rest.contains(|c: char| c.is_whitespace() || c.is_control())
            && !rest[url.authority().len()..].split('?').next().is_some_and(|path| path.contains('@'));
        let unix = ["redis+unix", "valkey+unix"].contains(&scheme) && url.host().is_empty();
        (clean && (unix || SCHEMES.contains(&server(scheme)) && is_host(url.host()))).then_some(url)
    }

    /// The whole URL, to connect with: never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        ["rediss", "valkeys"].contains(&server(self.scheme()))
    }

    /// Whether it leads to a Redis Cluster.
    pub fn is_cluster(&self) -> bool {
        self.scheme().ends_with("-cluster")
    }

    /// Whether the URL itself names a user or a password for the server.
    pub fn has_credentials(&self) -> bool {
        self.authority().contains('@')
    }

    fn scheme(&self) -> &str {
        self.0.split("://").next().unwrap_or_default()
    }

    /// `user:password@host:port`. Cut at the path and query, in which an `@` is no credential.
    fn authority(&self) -> &str {
        let rest = &self.0[self.scheme().len() + "://".len()..];
        // A socket has no host: there, the path follows the credentials.
        rest.split(['/', '?', '#']).next().unwrap_or_default()
    }

    /// `host:port`.
    fn host(&self) -> &str {
        self.authority().rsplit('@').next().unwrap_or_default()
    }
}

impl std::str::FromStr for RedisUrl {
    type Err = crate::job::Malformed;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text).ok_or(crate::job::Malformed("must be a URL of Redis"))
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme(), self.host())
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The scheme without what it says about topology.
fn server(scheme: &str) -> &str {
    scheme.strip_suffix("-cluster").or_else(|| scheme.strip_suffix("-sentinel")).unwrap_or(scheme)
}

/// Whether this is a host, with or without a port.
fn is_host(text: &str) -> bool {
    let is_ipv6 = |host: &str| host.starts_with('[') && host.ends_with(']');
    match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => !host.is_empty() && (!host.contains(':') || is_ipv6(host)),
        Some(_) => is_ipv6(text),
        None => !text.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_url_shows_where_it_leads_and_nothing_secret() {
        for (text, shown, tls, credentials) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379", false, false),
            ("rediss://u:s3cret@host:1/0", "rediss://host:1", true, true),
            ("redis://:s3c@ret@host", "redis://host", false, true),
            ("redis://[::1]:6379", "redis://[::1]:6379", false, false),
            ("redis://[::1]", "redis://[::1]", false, false),
            ("valkeys-cluster://h:1?node=b:2", "valkeys-cluster://h:1", true, false),
            ("redis-sentinel://h?sentinelPassword=s3cret@x", "redis-sentinel://h", false, false),
            ("redis+unix:///run/redis.sock", "redis+unix://", false, false),
        ] {
            let url = RedisUrl::new(text).expect(text);
            assert_eq!((format!("{url:?}").as_str(), url.is_tls(), url.has_credentials()), (shown, tls, credentials));
        }
    }

    #[test]
    fn a_url_of_something_else_is_refused() {
        for text in [
            "",
            "127.0.0.1:6379",
            "http://host",
            "redis://",
            "redis://:6379",
            "redis://host:port",
            "redis://a b",
            "redis-unix://x",
            "rediss+unix://x",
            "redis+unix://host/x",
            "redis://:pass/word@host",
            "redis://user:pass?word@host",
        ] {
            assert_eq!(RedisUrl::new(text), None, "{text}");
        }
    }
}
