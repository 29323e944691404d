//! Values that are right one by one and wrong together.

use std::time::Duration;

use humantime::format_duration;
use secrecy::ExposeSecret;

use super::mistakes::{Mistake, Origin};
use super::{Config, read};

/// The contradictions in a configuration, but for those that rest on a key that `trust` does not: its value was
/// refused and said to be wrong already. Each is put down to the first of its keys that somebody gave.
pub(super) fn find(
    config: &Config,
    trust: impl Fn(&str) -> bool,
    origin_of: impl Fn(&'static str) -> Origin,
) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut refuse = |keys: &[&'static str], wrong: bool, why: String| {
        if wrong && keys.iter().all(|key| trust(key)) {
            let mut origins = keys.iter().map(|key| origin_of(key));
            let given = origins.find(|origin| !matches!(origin, Origin::Default(_)));
            let origin = given.unwrap_or(Origin::Default(keys[0]));
            found.push(Mistake { origin, what: format!("{} {why}", keys[0]) });
        }
    };

    let own_lease = config.lease.saturating_sub(config.lease_margin);
    refuse(&["lease_margin", "lease"], own_lease.is_zero(), less_than("lease", config.lease, config.lease_margin));
    refuse(
        &["beat_interval", "lease", "lease_margin"],
        config.beat_interval * 2 > own_lease,
        format!(
            "must fit twice into lease less lease_margin ({}), so that one beat may be lost; is {}",
            format_duration(own_lease),
            format_duration(config.beat_interval)
        ),
    );
    refuse(
        &["accept_timeout", "lease"],
        config.accept_timeout >= config.lease,
        less_than("lease", config.lease, config.accept_timeout),
    );
    refuse(
        &["rebuild_hold", "lease"],
        !config.rebuild_hold().is_zero() && config.rebuild_hold() < config.lease,
        format!(
            "must be 0s, or at least lease ({}): so long may a runner go on that no pod hears of; is {}",
            format_duration(config.lease),
            format_duration(config.rebuild_hold())
        ),
    );
    refuse(
        &["pod_dead_after", "pod_heartbeat"],
        config.pod_dead_after < config.pod_heartbeat * 2,
        format!(
            "must be at least two of pod_heartbeat ({}), so that one may be lost; is {}",
            format_duration(config.pod_heartbeat),
            format_duration(config.pod_dead_after)
        ),
    );
    refuse(
        &["redis_command_timeout", "lease", "lease_margin"],
        config.redis_command_timeout >= own_lease,
        less_than("lease less lease_margin", own_lease, config.redis_command_timeout),
    );
    refuse(
        &["affinity_wait", "affinity_memory"],
        config.affinity_wait > config.affinity_memory,
        format!(
            "must not be longer than affinity_memory ({}); is {}",
            format_duration(config.affinity_memory),
            format_duration(config.affinity_wait)
        ),
    );
    refuse(
        &["payload_max_bytes", "data_max_bytes"],
        config.payload_max_bytes > config.data_max_bytes,
        format!("must be at most data_max_bytes ({}); is {}", config.data_max_bytes, config.payload_max_bytes),
    );
    refuse(
        &["admin_listen", "grpc_listen"],
        config.admin_listen == config.grpc_listen && config.admin_listen.port() != 0,
        "must not be the address of grpc_listen".to_owned(),
    );
    refuse(
        &["redis_password_file", "redis_password"],
        config.redis_password.is_some() && config.redis_password_file.is_some(),
        "must not be given together with redis_password".to_owned(),
    );
    let password_apart = config.redis_password.is_some() || config.redis_password_file.is_some();
    refuse(
        &["redis_url"],
        config.redis_url.has_credentials() && (password_apart || config.redis_username.is_some()),
        "must not hold a user or password when redis_username or a password is given apart".to_owned(),
    );
    refuse(
        &["redis_ca_file", "redis_url"],
        config.redis_ca_file.is_some() && !config.redis_url.is_tls(),
        "needs a redis_url with TLS (rediss://)".to_owned(),
    );
    let (cert, key) = (&config.redis_cert_file, &config.redis_key_file);
    let tls = ["redis_cert_file", "redis_key_file"];
    refuse(&tls, cert.is_some() != key.is_some(), "and redis_key_file must be given together".to_owned());
    refuse(
        &["redis_cert_file", "redis_url"],
        cert.is_some() && !config.redis_url.is_tls(),
        "needs a redis_url with TLS (rediss://)".to_owned(),
    );
    let (cert, key) = (&config.grpc_tls_cert_file, &config.grpc_tls_key_file);
    let tls = ["grpc_tls_cert_file", "grpc_tls_key_file"];
    refuse(&tls, cert.is_some() != key.is_some(), "and grpc_tls_key_file must be given together".to_owned());
    refuse(
        &["grpc_tls_client_ca_file", "grpc_tls_cert_file"],
        config.grpc_tls_client_ca_file.is_some() && cert.is_none(),
        "needs grpc_tls_cert_file: without TLS no runner shows a certificate".to_owned(),
    );
    if let Some(path) = &config.redis_password_file {
        let why = match read::read_secret(path) {
            Ok(secret) if secret.expose_secret().is_empty() => Some("holds no password".to_owned()),
            Ok(_) => None,
            Err(error) => Some(format!("holds no password: {}", error.kind())),
        };
        refuse(&["redis_password_file"], why.is_some(), why.unwrap_or_default());
    }
    found
}

fn less_than(other: &str, limit: Duration, found: Duration) -> String {
    format!("must be less than {other} ({}); is {}", format_duration(limit), format_duration(found))
}
