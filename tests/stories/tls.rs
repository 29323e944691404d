//! TLS: runners to pods, with certificates of one side or of both, and pods to Redis, with a user of few rights.

use std::time::Duration;

use job_router::client::{self, Options, Shutdown};
use job_router::dispatcher::redis_settings;
use job_router::job::Name;
use job_router::proto::gitlab::GetJobRequest;
use job_router::proto::gitlab::job_router_client::JobRouterClient;
use job_router::proto::router_message::Kind as Down;
use job_router::proto::runner_message::Kind as Up;
use job_router::redis::{Arg, PrivateRedisOptions, Redis, ReservedPort};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};

use crate::support::certificates::{Authority, Files, Signed};
use crate::support::pods::{Installation, LIMIT, Noting, TestPod, token};
use crate::support::raw::{self, Raw};
use crate::support::{POD_PASSWORD, POD_USER};

/// An installation whose pods show a certificate of this authority.
struct Encrypted {
    installation: Installation,
    files: Files,
}

impl Encrypted {
    async fn by(authority: &Authority) -> Self {
        let (mut installation, files) = (Installation::new().await, Files::new());
        let (certificate, key) = files.put_signed("pod", &authority.sign());
        installation.config.grpc_tls_cert_file = Some(certificate);
        installation.config.grpc_tls_key_file = Some(key);
        Self { installation, files }
    }

    /// Runners must show one of this authority.
    fn for_those_of(mut self, clients: &Authority) -> Self {
        self.installation.config.grpc_tls_client_ca_file = Some(self.files.put("clients.pem", &clients.pem));
        self
    }

    async fn pod(&self) -> TestPod {
        let pod = self.installation.pod("a").await;
        self.installation.register(1, json!({})).await;
        pod
    }
}

fn https(pod: &TestPod) -> String {
    pod.url.replace("http://", "https://")
}

/// A connection to who shows a certificate of this authority, showing one if there is one to show.
async fn connect(
    pod: &TestPod,
    trusted: &Authority,
    shown: Option<&Signed>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&trusted.pem));
    if let Some(signed) = shown {
        tls = tls.identity(Identity::from_pem(&signed.certificate, &signed.key));
    }
    Endpoint::from_shared(https(pod)).expect("a URL").tls_config(tls).expect("certificates").connect().await
}

/// Says Hello as runner 1.
async fn greet(channel: Channel, system_id: &str, slots: u32) -> Result<(Raw, String), tonic::Status> {
    let bearer = format!("Bearer {}", token(1));
    let mut raw = Raw::stream(channel, Some(&bearer)).await?;
    raw.say(Up::Hello(raw::hello(system_id, slots))).await;
    match raw.next().await? {
        Some(Down::Welcome(welcome)) => Ok((raw, welcome.session)),
        other => panic!("not welcome: {other:?}"),
    }
}

/// Runs what it is assigned, at once; until its session ends, and then fails.
async fn work(mut raw: Raw) {
    let mut seen = 0;
    loop {
        match raw.next_within(Duration::from_secs(60)).await.expect("no error").expect("the session goes on") {
            Down::Assign(assign) => {
                seen += 1;
                raw.say(raw::accepted(&assign.lease.expect("a lease"))).await;
            }
            Down::Start(start) => {
                raw.say(raw::finished(&start.lease.expect("a lease"))).await;
                raw.say(raw::slots(1, seen)).await;
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runners_of_both_doors_come_in_by_tls_and_nobody_without() {
    let (authority, other) = (Authority::new(), Authority::new());
    let encrypted = Encrypted::by(&authority).await;
    let (installation, pod) = (&encrypted.installation, encrypted.pod().await);

    let mut options = Options::new(https(&pod), token(1).into(), Name::new("s_1").expect("a name"), 1);
    options.ca_pem = Some(authority.pem.clone().into_bytes());
    let (shutdown, noting) = (Shutdown::default(), Noting::default());
    let runner = tokio::spawn(client::run(options, noting.clone(), shutdown.clone()));
    installation.job(1, json!({})).await;
    installation.until_events("job.finished", 1).await;
    shutdown.stop.cancel();
    runner.await.expect("no panic").expect("no error");
    assert_eq!(*noting.ran.lock().expect("no panic"), [1]);

    let mut request = Request::new(GetJobRequest { job_request: json!({"system_id": "s_2"}).to_string().into() });
    let bearer = format!("Bearer {}", token(1)).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    installation.job(2, json!({})).await;
    let mut client = JobRouterClient::new(connect(&pod, &authority, None).await.expect("TLS"));
    let answer = tokio::time::timeout(LIMIT, client.get_job(request)).await.expect("in time").expect("a job");
    assert!(!answer.get_ref().job_response.is_empty());

    assert!(connect(&pod, &other, None).await.is_err(), "who trusts another authority does not talk to it");
    let plain = Endpoint::from_shared(pod.url.clone()).expect("a URL").connect().await;
    let spoken = async { Raw::stream(plain?, Some("Bearer x")).await.map(drop).map_err(anyhow::Error::from) };
    assert!(spoken.await.is_err(), "without TLS nothing is said");
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_for_runners_only_those_it_signed_are_heard_and_their_tokens_still_decide() {
    let (authority, clients, others) = (Authority::new(), Authority::new(), Authority::new());
    let encrypted = Encrypted::by(&authority).await.for_those_of(&clients);
    let pod = encrypted.pod().await;
    // With TLS 1.3 a client learns that it was refused as it reads.
    for shown in [None, Some(others.sign())] {
        let refused = match connect(&pod, &authority, shown.as_ref()).await {
            Ok(channel) => greet(channel, "s_1", 1).await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "with a certificate of others: {}", shown.is_some());
    }
    let signed = clients.sign();
    let channel = connect(&pod, &authority, Some(&signed)).await.expect("TLS");
    let (session, _) = greet(channel.clone(), "s_1", 1).await.expect("welcome");
    drop(session);
    let nobody = Raw::stream(channel, Some("Bearer nobody")).await.expect("a stream");
    nobody.say(Up::Hello(raw::hello("s_1", 1))).await;
    let mut nobody = nobody;
    assert_eq!(nobody.end().await.expect_err("no runner's token").code(), Code::Unauthenticated);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_does_not_agree_on_tls_is_cut() {
    let mut encrypted = Encrypted::by(&Authority::new()).await;
    encrypted.installation.config.hello_timeout = Duration::from_millis(300);
    let pod = encrypted.pod().await;
    let half_a_hello: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00];
    for said in [&[], half_a_hello] {
        let mut tcp = TcpStream::connect(pod.url.trim_start_matches("http://")).await.expect("connects");
        tcp.write_all(said).await.expect("writes");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(LIMIT, tcp.read_to_end(&mut answer)).await.expect("it is cut");
        assert!(ended.is_err() || answer.is_empty(), "nothing was agreed on: {answer:?}");
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_replaced_under_load_and_no_session_is_cut() {
    const SESSIONS: usize = 8;
    let (before, after) = (Authority::new(), Authority::new());
    let encrypted = Encrypted::by(&before).await;
    let (installation, pod) = (&encrypted.installation, encrypted.pod().await);
    let mut working = JoinSet::new();
    for number in 0..SESSIONS {
        let channel = connect(&pod, &before, None).await.expect("TLS");
        let (raw, _) = greet(channel, &format!("s_{number}"), 1).await.expect("welcome");
        working.spawn(work(raw));
    }
    let mut published = 0;
    let mut publish = async || {
        for _ in 0..20 {
            published += 1;
            installation.job(published, json!({})).await;
        }
        published
    };
    publish().await;

    // Half of a pair, and what is no certificate, change nothing.
    let signed = after.sign();
    encrypted.files.put("pod.key", &signed.key);
    encrypted.files.put("pod.crt", "no certificate");
    tokio::time::sleep(Duration::from_secs(3)).await; // longer than it takes to look again
    publish().await;
    assert!(connect(&pod, &before, None).await.is_ok(), "the last good ones stay");

    encrypted.files.put("pod.crt", &signed.certificate);
    let mut looks = 0;
    let trusted = async || connect(&pod, &after, None).await.ok();
    installation
        .until("new connections are shown the new one", async || {
            looks += 1;
            if looks % 10 == 0 {
                publish().await;
            }
            trusted().await
        })
        .await;
    assert!(connect(&pod, &before, None).await.is_err(), "and no other");
    let published = publish().await;
    let done = installation.until_events("job.finished", published as usize);
    tokio::select! {
        () = done => {}
        ended = working.join_next() => panic!("a session ended: {ended:?}"),
    }
    assert_eq!(working.len(), SESSIONS);
    println!("{published} jobs, {SESSIONS} sessions, none of them cut");
    drop(working);
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_cannot_be_used_are_told_at_the_start() {
    let authority = Authority::new();
    let mut encrypted = Encrypted::by(&authority).await;
    let key_of_another = encrypted.files.put("another.key", &authority.sign().key);
    let none = encrypted.files.put("none.pem", "");
    let gone = encrypted.files.dir().join("gone.pem");
    let config = &mut encrypted.installation.config;
    let (certificate, key) = (config.grpc_tls_cert_file.clone(), config.grpc_tls_key_file.clone());
    let cases = [
        (Some(gone.clone()), key.clone(), None, "gone.pem"),
        (certificate.clone(), Some(none.clone()), None, "none.pem: holds no private key"),
        (certificate.clone(), Some(key_of_another), None, "pod.crt: "),
        (certificate, key, Some(none), "none.pem: holds no certificate"),
    ];
    for (certificate, key, client_ca, said) in cases {
        let config = &mut encrypted.installation.config;
        (config.grpc_tls_cert_file, config.grpc_tls_key_file) = (certificate, key);
        config.grpc_tls_client_ca_file = client_ca;
        let error = encrypted.installation.pod("a").await.ended().await.expect_err("it does not start");
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reaches_redis_by_tls_with_a_certificate_of_its_own() {
    let (authority, files) = (Authority::new(), Files::new());
    let (certificate, key) = files.put_signed("redis", &authority.sign());
    let ca = files.put("ca.pem", &authority.pem);
    let port = ReservedPort::new().expect("a port");
    let config = vec![
        format!("tls-port {}", port.get()),
        format!("tls-cert-file {}", certificate.display()),
        format!("tls-key-file {}", key.display()),
        format!("tls-ca-cert-file {}", ca.display()),
        "tls-auth-clients yes".to_owned(),
    ];
    let (mut installation, server) =
        Installation::alone_with(PrivateRedisOptions { config, ..PrivateRedisOptions::default() }).await;
    let (certificate, key) = files.put_signed("pod", &authority.sign());
    installation.config.redis_url = format!("rediss://127.0.0.1:{}", port.get()).parse().expect("a URL");
    installation.config.redis_ca_file = Some(ca);
    let none = installation.config.clone();
    installation.config.redis_cert_file = Some(certificate);
    installation.config.redis_key_file = Some(key);

    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 1, Noting::default());
    installation.job(1, json!({})).await;
    installation.until_events("job.finished", 1).await;
    runner.stop().await;
    pod.end().await;

    let settings = redis_settings(&none).expect("settings");
    let refused = Redis::connect(&settings).await.err().expect("Redis wants a certificate").to_string();
    assert!(refused.contains("cannot connect"), "{refused}");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_the_documentation_may_do_no_more_than_it_must() {
    let installation = Installation::new().await;
    let pod = installation.pod("a").await;
    let settings = redis_settings(&installation.config).expect("settings");
    let user = Redis::connect(&settings).await.expect("logs in");
    for (command, args) in [
        ("GET", &["another:key"][..]),
        ("XADD", &["another:stream", "*", "a", "b"]),
        ("FLUSHALL", &[]),
        ("KEYS", &["*"]),
        ("CONFIG GET", &["requirepass"]),
        ("ACL LIST", &[]),
        ("EVAL", &["return 1", "0"]),
        ("CLIENT LIST", &[]),
        ("SHUTDOWN", &[]),
        ("PUBLISH", &["channel", "text"]),
        ("SCAN", &["0"]),
        ("RANDOMKEY", &[]),
    ] {
        let args = args.iter().map(|arg| Arg::from(*arg));
        let error = user.command_at("any", command, args).await.expect_err(command).to_string();
        assert!(error.contains("NOPERM"), "{command}: {error}");
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_for_rails_may_do_what_the_contract_asks_of_it() {
    let (installation, _redis) = Installation::alone().await;
    let pod = installation.pod("a").await;
    let mut config = installation.config.clone();
    config.redis_username = Some("rails".to_owned());
    let rails = Redis::connect(&redis_settings(&config).expect("settings")).await.expect("logs in");
    let events = format!("{{{}:0}}:events", config.key_prefix);
    let call = async |line: &str| {
        let line = line.replace("EVENTS", &events).replace("INBOX", &config.inbox_stream);
        let mut words = line.split(' ');
        let name: &'static str = words.next().expect("a command").replace('_', " ").leak();
        rails.command_at(&events, name, words.map(Arg::from)).await
    };
    let message =
        "XADD INBOX * v 1 type job.pending data {\"id\":1,\"project_id\":1,\"namespace_ids\":[1],\"payload\":{}}";
    call(message).await.expect("publishes");
    installation.until_events("job.queued", 1).await;
    for allowed in [
        "XGROUP_CREATE EVENTS rails 0",
        "XREADGROUP GROUP rails a COUNT 10 STREAMS EVENTS >",
        "XAUTOCLAIM EVENTS rails b 0 0",
        "XPENDING EVENTS rails",
        "XACK EVENTS rails 0-1",
        "XINFO_GROUPS EVENTS",
        "XLEN EVENTS",
        "WAIT 0 1",
        "ROLE",
        "PING",
    ] {
        call(allowed).await.expect(allowed);
    }
    for denied in ["XRANGE INBOX - +", "DEL EVENTS", "FCALL f 0", "HGETALL {t0:0}:job:1", "FLUSHALL", "CONFIG_GET *"] {
        let error = call(denied).await.expect_err(denied).to_string();
        assert!(error.contains("NOPERM"), "{denied}: {error}");
    }
    pod.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_of_redis_is_changed_while_a_pod_runs() {
    let (mut installation, mut server) =
        Installation::alone_with(PrivateRedisOptions { append_only: true, ..PrivateRedisOptions::default() }).await;
    let files = Files::new();
    installation.config.redis_password = None;
    installation.config.redis_password_file = Some(files.put("password", &format!("{POD_PASSWORD}\n")));
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    files.put("password", "another\n");
    // As after the operator's change of the ACL file: the old one is good no more.
    let is_new = [format!("<{POD_PASSWORD}"), ">another".to_owned()];
    installation.command("ACL SETUSER", &[POD_USER, &is_new[0], &is_new[1]]).await;
    installation.command("CLIENT KILL", &["USER", POD_USER]).await;
    let runner = installation.runner(&pod.url, 1, "s_1", 1, Noting::default());
    installation.job(1, json!({})).await;
    installation.until_events("job.finished", 1).await;
    runner.stop().await;
    pod.end().await;
    server.stop().expect("stops");
}
