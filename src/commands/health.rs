//! `job-router health`: asks a pod's admin server how it is, for health checks of containers, which bring no HTTP client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tonic::codegen::http::Uri;

use super::connection::RedisArgs;
use super::{Usage, output};

/// Ask a pod whether it is well: exit code 0 if so, else 1
///
/// What the pod answers is printed. By default it is asked whether new runners are welcome (`/readyz`): Redis answers, it has the
/// scripts, and the pod does not drain. Where what is unhealthy is killed, ask `/livez`: a pod whose Redis is away must keep its
/// runners.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  job-router health\n  job-router health --url http://127.0.0.1:7461/livez\n  \
    job-router health --url 'http://router-0:7461/readyz?verbose'")]
pub(super) struct Args {
    /// What to ask [default: /readyz at admin_listen, as the environment and JOB_ROUTER_CONFIG have it]
    #[arg(long)]
    url: Option<Uri>,
    /// How long the answer may take
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let url = match args.url {
        Some(url) if url.scheme_str() == Some("http") && url.host().is_some() => url,
        Some(_) => return Err(Usage("--url: must begin with http:// and a host".to_owned()).into()),
        None => readyz(RedisArgs::default().config()?.admin_listen)?,
    };
    let asked = tokio::time::timeout(args.timeout, get(url.clone())).await;
    let (is_well, text) = match asked {
        Ok(answer) => answer.with_context(|| format!("{url} cannot be asked"))?,
        Err(_) => bail!("{url} does not answer within {}", humantime::format_duration(args.timeout)),
    };
    output::line(text.trim_end())?;
    if is_well { Ok(()) } else { bail!("{url} says that it is not well") }
}

/// Where a pod that listens there is asked from its own host.
fn readyz(listen: SocketAddr) -> anyhow::Result<Uri> {
    let host = match listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => "[::1]".to_owned(),
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    };
    Ok(format!("http://{host}:{}/readyz", listen.port()).parse()?)
}

async fn get(url: Uri) -> anyhow::Result<(bool, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.get(url).await?;
    let is_well = answer.status().is_success();
    let body = http_body_util::Limited::new(answer.into_body(), 64 << 10).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("its answer: {error}"))?.to_bytes();
    Ok((is_well, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_listens_everywhere_is_asked_on_this_host() {
        for (listen, url) in [
            ("0.0.0.0:7461", "http://127.0.0.1:7461/readyz"),
            ("[::]:7461", "http://[::1]:7461/readyz"),
            ("10.1.2.3:80", "http://10.1.2.3:80/readyz"),
        ] {
            assert_eq!(readyz(listen.parse().expect("an address")).expect("a URL").to_string(), url);
        }
    }
}
