//! Flags, variables and files in; a configuration or its mistakes out.

use std::collections::HashSet;

use clap::Command;
use secrecy::ExposeSecret;

use super::*;

/// What these sources give. The file is written anew for each call, and shows in origins as `FILE`.
fn load(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Result<Config, Vec<String>> {
    let path = tempfile::NamedTempFile::new().expect("a place to write").into_temp_path();
    std::fs::write(&path, file).expect("written");
    let path_text = path.to_str().expect("UTF-8");
    let words = ["serve", "--config", path_text].into_iter().chain(flags.iter().copied());
    let matches = Command::new("serve").args(super::flags()).try_get_matches_from(words).expect("known flags");
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    let said = |mistakes: Mistakes| mistakes.iter().map(|m| m.to_string().replace(path_text, "FILE")).collect();
    Config::load(&matches, variables).map_err(said)
}

fn mistakes(flags: &[&str], variables: &[(&str, &str)], file: &str) -> Vec<String> {
    load(flags, variables, file).expect_err("a mistake")
}

#[test]
fn the_struct_and_the_file_name_the_same_keys_in_the_same_order() {
    let in_file: Vec<&str> = keys::keys().iter().map(|key| key.name).collect();
    assert_eq!(Config::FIELDS, in_file);
}

#[test]
fn the_defaults_hold_together() {
    let config = load(&[], &[], "").expect("no mistake");
    assert_eq!(config.lease, Duration::from_secs(60));
    assert_eq!(config.data_max_bytes, 2 << 20);
    assert_eq!(config.redis_url.expose(), "redis://127.0.0.1:6379");
    assert_eq!((config.redis_username, config.grpc_tls_cert_file), (None, None));
    load(&[], &[], DEFAULTS_TOML).expect("the documented file is a valid file of one's own");
}

#[test]
fn help_lists_every_key_with_its_meaning_limits_default_and_variable() {
    let help = Command::new("serve").term_width(10_000).args(super::flags()).render_long_help().to_string();
    for key in keys::keys() {
        let line = help.split("\n\n").find(|part| part.trim_start().starts_with(&format!("--{} ", key.flag)));
        let line = line.unwrap_or_else(|| panic!("no --{} in\n{help}", key.flag));
        let default = if key.default.is_empty() { "not set" } else { &key.default };
        for part in
            [&key.help, &key.shape.to_string(), &format!("[default: {default}]"), &format!("[env: {}]", key.variable)]
        {
            assert!(line.contains(part), "no {part} in {line}");
        }
        assert!(key.help.len() > 20, "{} is documented", key.name);
    }
}

#[test]
fn the_words_of_a_choice_are_those_its_type_knows() {
    for order in ["fifo", "fair"] {
        load(&["--group-lane-order", order], &[], "").expect(order);
    }
    for format in ["auto", "json", "human"] {
        load(&["--log-format", format], &[], "").expect(format);
    }
}

#[test]
fn the_limits_of_numbers_fit_their_types() {
    for key in keys::keys() {
        let must = key.shape.to_string();
        let Some((_, max)) = must.strip_prefix("a whole number from ").and_then(|range| range.split_once(" to "))
        else {
            continue;
        };
        let mut values = super::defaults();
        values.insert("pod_id", Value::Name(Name::new("pod").expect("a name")));
        values.insert(key.name, key.shape.check(max).expect("the limit is within the limits"));
        Config::read(&values);
    }
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = "lease = \"61s\"\ninbox_batch = 1_00\nsweep_interval = '2s'";
    let variables = [("JOB_ROUTER_LEASE", "62s"), ("JOB_ROUTER_INBOX_BATCH", "200")];
    let config = load(&["--lease", "63s"], &variables, file).expect("no mistake");
    assert_eq!(config.lease, Duration::from_secs(63), "flag");
    assert_eq!(config.inbox_batch, 200, "variable");
    assert_eq!(config.sweep_interval, Duration::from_secs(2), "file");
    assert_eq!(config.accept_timeout, Duration::from_secs(5), "default");
}

#[test]
fn a_variable_names_the_file_and_the_flag_wins() {
    let file = tempfile::NamedTempFile::new().expect("a place to write");
    std::fs::write(file.path(), "inbox_batch = 7").expect("written");
    let variables = || [("JOB_ROUTER_CONFIG".into(), file.path().into())];
    let matches = Command::new("serve").args(super::flags()).try_get_matches_from(["serve"]).expect("no flags");
    assert_eq!(Config::load(&matches, variables()).expect("no mistake").inbox_batch, 7);
    let words = ["serve", "--config", "/nonexistent/file"];
    let matches = Command::new("serve").args(super::flags()).try_get_matches_from(words).expect("known");
    let mistakes = Config::load(&matches, variables()).expect_err("no such file");
    assert_eq!(
        mistakes.to_string(),
        "the configuration has a mistake:\n  /nonexistent/file: cannot be read: entity not found"
    );
}

#[test]
fn every_mistake_is_reported_at_once_with_its_origin() {
    let file = "\
lease = 60
leese = \"60s\"
colour = \"red\"

redis_url = [1]
inbox_batch = 0
";
    let variables = [
        ("JOB_ROUTER_GRPC_LISTEN", "localhost"),
        ("JOB_ROUTER_LOG_FROMAT", "json"),
        ("JOB_ROUTER_LOG", "inof"),
        ("PATH", "/bin"),
    ];
    let flags = ["--max-sessions", "many", "--payload-max-bytes=4MiB", "--pod-id", "a b", "--pod-dead-after", "1500ms"];
    let mut found = mistakes(&flags, &variables, file);
    found.sort();
    let mut wanted = [
        "FILE:1: lease must be a duration from 5s to 1h, such as 500ms, 10s or 5m; is a number without a unit",
        "FILE:2: there is no key leese; did you mean lease?",
        "FILE:3: there is no key colour",
        "FILE:5: redis_url must be a Redis URL, such as redis://127.0.0.1:6379; is a TOML array",
        "FILE:6: inbox_batch must be a whole number from 1 to 4096; is 0",
        "JOB_ROUTER_GRPC_LISTEN: grpc_listen must be an IP address and port, such as 0.0.0.0:7460 or [::]:7460; is text of 9 bytes",
        "JOB_ROUTER_LOG_FROMAT: there is no variable JOB_ROUTER_LOG_FROMAT; did you mean JOB_ROUTER_LOG_FORMAT?",
        "JOB_ROUTER_LOG: log must be a level (error, warn, info, debug, trace) or a list of module=level; is text of 4 bytes",
        "--max-sessions: max_sessions must be a whole number from 1 to 1000000; is text of 4 bytes",
        "--payload-max-bytes: payload_max_bytes must be a size from 1024 to 3145728 bytes, such as 65536, 64KiB or 1MiB; is 4194304",
        "--pod-id: pod_id must be 1 to 64 of [A-Za-z0-9_.:-], or empty; is text of 3 bytes",
        "--pod-dead-after: pod_dead_after must be at least two of pod_heartbeat (1s), so that one may be lost; is 1s 500ms",
    ];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
}

#[test]
fn a_file_that_is_not_toml_is_refused_by_line_and_the_rest_is_still_read() {
    let found = mistakes(&[], &[], "lease = \"60s\"\ninbox_batch = = 3\nleese = 1\nlease = \"61s\"\n");
    let starts = |start: &str| found.iter().any(|mistake| mistake.starts_with(start));
    assert!(starts("FILE:2: is not TOML: "), "{found:?}");
    assert!(starts("FILE:3: there is no key leese"), "{found:?}");
    assert!(starts("FILE:4: is not TOML: duplicate key"), "{found:?}");
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let file = file!();
    let table: &[(&[&str], &str)] = &[
        (
            &["--beat-interval", "30s"],
            "--beat-interval: beat_interval must fit twice into lease less lease_margin (45s)",
        ),
        (&["--lease", "30s"], "--lease: beat_interval must fit twice into lease less lease_margin (15s)"),
        (&["--lease-margin", "1m"], "--lease-margin: lease_margin must be less than lease (1m); is 1m"),
        (&["--accept-timeout", "2m"], "--accept-timeout: accept_timeout must be less than lease (1m); is 2m"),
        (&["--pod-heartbeat", "2s"], "--pod-heartbeat: pod_dead_after must be at least two of pod_heartbeat (2s)"),
        (
            &["--redis-command-timeout", "20s", "--lease-margin", "41s", "--beat-interval", "5s"],
            "--redis-command-timeout: redis_command_timeout must be less than lease less lease_margin (19s); is 20s",
        ),
        (&["--data-max-bytes", "1KiB"], "--data-max-bytes: payload_max_bytes must be at most data_max_bytes (1024)"),
        (&["--admin-listen", "127.0.0.1:7460"], "--admin-listen: admin_listen must not be the address of grpc_listen"),
        (
            &["--redis-password", "x", "--redis-password-file", file],
            "--redis-password-file: redis_password_file must not be given together with redis_password",
        ),
        (
            &["--redis-url", "redis://:x@h", "--redis-username", "u"],
            "--redis-url: redis_url must not hold a user or password",
        ),
        (&["--redis-ca-file", file], "--redis-ca-file: redis_ca_file needs a redis_url with TLS"),
        (&["--grpc-tls-key-file", file], "--grpc-tls-key-file: grpc_tls_cert_file and grpc_tls_key_file must be given"),
        (&["--redis-password-file", "/dev/null"], "--redis-password-file: redis_password_file holds no password"),
    ];
    for (flags, wanted) in table {
        let found = mistakes(flags, &[], "");
        assert!(found.iter().any(|mistake| mistake.starts_with(wanted)), "{wanted}: {found:?}");
    }
    load(&["--admin-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"], &[], "").expect("any two free ports");
}

#[test]
fn a_value_of_the_wrong_shape_causes_no_second_mistake() {
    let found = mistakes(&["--lease", "soon", "--beat-interval", "2m"], &[], "");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn secrets_are_never_printed() {
    let flags = ["--redis-url", "rediss://user:s3cret@host"];
    let shown = format!("{:?}", load(&flags, &[], "").expect("no mistake"));
    assert!(shown.contains("rediss://host") && !shown.contains("s3cret"), "{shown}");
    let shown = format!("{:?}", load(&["--redis-password", "s3cret"], &[], "").expect("no mistake"));
    assert!(!shown.contains("s3cret"), "{shown}");
    for misplaced in ["--lease", "--redis-url", "--redis-password-file", "--log-format", "--log", "--pod-id"] {
        let shown =
            mistakes(&[misplaced, "my s3cret=1"], &[("JOB_ROUTER_PASS", "s3cret")], "redis_passwort = \"s3cret\"");
        assert!(shown.len() == 3 && !shown.join(" ").contains("s3cret"), "{misplaced}: {shown:?}");
    }
}

#[test]
fn the_password_is_read_anew_from_its_file() {
    let file = tempfile::NamedTempFile::new().expect("a place to write");
    std::fs::write(file.path(), "old\n").expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let config = load(&["--redis-password-file", path], &[], "").expect("no mistake");
    let password = || config.read_redis_password().expect("readable").map(|p| p.expose_secret().to_owned());
    assert_eq!(password().as_deref(), Some("old"));
    std::fs::write(file.path(), "new").expect("written");
    assert_eq!(password().as_deref(), Some("new"));
    std::fs::remove_file(file.path()).expect("removed");
    assert!(config.read_redis_password().is_err());
}

#[test]
fn variables_that_kubernetes_makes_for_a_service_named_job_router_are_no_mistake() {
    let variables = [
        ("JOB_ROUTER_SERVICE_HOST", "10.0.0.1"),
        ("JOB_ROUTER_SERVICE_PORT", "7460"),
        ("JOB_ROUTER_SERVICE_PORT_GRPC", "7460"),
        ("JOB_ROUTER_PORT", "tcp://10.0.0.1:7460"),
        ("JOB_ROUTER_PORT_7460_TCP", "tcp://10.0.0.1:7460"),
        ("JOB_ROUTER_ADMIN_PORT_7461_TCP_ADDR", "10.0.0.1"),
    ];
    load(&[], &variables, "").expect("no mistake");
    assert_eq!(mistakes(&[], &[("JOB_ROUTER_PORT", "7460")], "").len(), 1, "that one somebody meant");
}

#[test]
fn a_pod_is_named_after_its_host_and_never_as_another_pod() {
    let names: HashSet<Name> = (0..20).map(|_| read::new_pod_id("ci-router_1.example.org")).collect();
    assert!(names.len() > 1);
    assert!(names.iter().all(|name| name.as_str().starts_with("ci-router_1.example.org-")), "{names:?}");
    let strange = read::new_pod_id(&"wirt schaft/ü".repeat(20));
    assert_eq!((strange.as_str().len(), strange.as_str().is_ascii()), (64, true));
    assert!(read::new_pod_id("").as_str().starts_with("pod-"));
    assert_eq!(load(&["--pod-id", "p1"], &[], "").expect("no mistake").pod_id.as_str(), "p1");
}
