//! `job-router health`, as the health check of a container asks.

use serde_json::json;
use tokio::process::Command;

use crate::support::pods::Installation;

/// What it prints, and its exit code.
async fn health(args: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_job-router"));
    let output = command.arg("health").args(args).output().await.expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).expect("UTF-8"), output.status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_well_while_it_welcomes_runners_and_alive_also_without_redis() {
    let (installation, mut redis) = Installation::alone().await;
    let pod = installation.pod("a").await;
    installation.register(1, json!({})).await;
    let [ready, live] = ["/readyz?verbose", "/livez"].map(|path| format!("http://{}{path}", pod.admin));
    let (said, code) = health(&["--url", &ready]).await;
    assert_eq!((code, said.contains("[+] redis_up")), (Some(0), true), "{said}");

    redis.stop().expect("stops");
    installation.until("not ready", async || (pod.admin("/readyz").await.0 == 503).then_some(())).await;
    let (said, code) = health(&["--url", &ready]).await;
    assert_eq!((code, said.contains("[-] redis_up")), (Some(1), true), "{said}");
    assert_eq!(health(&["--url", &live]).await.1, Some(0));

    pod.kill().await;
    let (said, code) = health(&["--url", &live]).await;
    assert_eq!((code, said.contains("cannot be asked")), (Some(1), true), "{said}");
    assert_eq!(health(&["--url", "https://127.0.0.1/livez"]).await.1, Some(64));
}
