//! `job-router lane-order`: an operator turns instance lanes to plain queues, and back.

use anyhow::Context;
use clap::ValueEnum;
use job_router::pause::Target;
use job_router::redis::LaneOrder;
use job_router::runner::{Lane, Scope};

use super::connection::{self, RedisArgs};
use super::{Usage, output, pause};

/// Turn an instance lane to a plain queue, or back to fair shares
///
/// For the day on which fairness itself is in doubt. It acts at once on all pods, on what is queued too, and stays until it is
/// changed again. `fifo`: the oldest job first, whoever's it is and whatever its priority; caps still hold. `fair`: by tenants' shares.
/// Lanes of groups follow the setting group_lane_order.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    job-router lane-order all fifo\n  \
    job-router lane-order instance:kTx1Ju0cGbvYq4xDTf3pzA fifo     # job-router lanes shows their names and orders\n  \
    job-router lane-order all fair      # also those that were set one by one")]
pub(super) struct Args {
    /// An instance lane's name, or `all` instance lanes
    #[arg(value_name = "LANE")]
    lane: String,
    /// How its jobs go
    #[arg(value_enum)]
    order: Order,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    /// By tenants' shares
    Fair,
    /// The oldest first
    Fifo,
}

/// Sets the order.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let lane = match args.lane.as_str() {
        "all" => None,
        name => Some(name.parse::<Lane>().map_err(|must| Usage(format!("the lane must be `all`, or {must}")))?),
    };
    if lane.is_some_and(|lane| lane.scope != Scope::Instance) {
        return Err(Usage("only instance lanes; others follow the setting group_lane_order".to_owned()).into());
    }
    let order = match args.order {
        Order::Fair => LaneOrder::Fair,
        Order::Fifo => LaneOrder::Fifo,
    };
    let config = args.redis.config()?;
    let redis = connection::connect(&config).await?;
    let partitions = pause::partitions(&config, &redis, &Target::All);
    let mut changed = false;
    for (done, partition) in partitions.iter().enumerate() {
        let set = partition.set_lane_order(lane, order).await;
        changed |= set.with_context(|| pause::half_way(done, partitions.len()))?;
    }
    redis.quit().await;
    let lanes = lane.map_or_else(|| "all instance lanes".to_owned(), |lane| lane.to_string());
    let now = if changed { "now" } else { "as before" };
    output::line(&format!("{lanes}: {} {now}", order.as_str()))
}
