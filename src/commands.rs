//! The subcommands; one module each.
//!
//! Exit codes: 0 done; 1 it could not be done; 64 a mistake in flags, variables or the configuration file (clap's own 2
//! means "half a success" to some supervisors); 65 some of the input was refused. Results go to stdout, all else to stderr.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use job_router::config::{self, Mistakes};
use job_router::telemetry::logging::{self, LogFormat, LoggingError};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

mod balancer;
mod bench;
mod connection;
mod demo;
mod dev;
mod doctor;
mod events;
mod explain;
mod health;
mod jobs;
mod lane_order;
mod lanes;
mod ledger;
mod output;
mod pause;
mod publish;
mod rig;
mod runner;
mod runner_add;
mod serve;
mod simulate;

/// The exit code when some of the input was refused: `EX_DATAERR` of `sysexits.h`.
const EXIT_DATA: u8 = 65;
/// How long a blocking read of stdin may hold up the end of the process.
const RUNTIME_END_MAX: Duration = Duration::from_millis(100);

/// Pushes CI jobs from a Redis stream to connected runners within milliseconds, fairly.
#[derive(Debug, Parser)]
#[command(name = "job-router", version)]
#[command(after_help = "Examples:\n  \
    job-router dev                    # a Redis and a pod of your own, until Ctrl-C\n  \
    job-router publish jobs.jsonl     # what Rails does, by hand\n  \
    job-router demo                   # see it work: 15 seconds\n\n\
    Every subcommand explains itself with an example: job-router help <COMMAND>")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// End in good order when standard input closes: for children, which must not outlive their parent.
    #[arg(long, hide = true, global = true)]
    end_with_stdin: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Dev(dev::Args),
    Publish(publish::Args),
    RunnerAdd(runner_add::Args),
    Runner(Box<runner::Args>),
    Doctor(doctor::Args),
    Health(health::Args),
    Jobs(jobs::Args),
    Explain(explain::Args),
    Events(events::Args),
    Lanes(lanes::Args),
    LaneOrder(lane_order::Args),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Paused(pause::PausedArgs),
    Bench(bench::Args),
    #[command(hide = true)]
    BenchLoad(bench::load::Args),
    Demo(demo::Args),
    Simulate(Box<simulate::Args>),
}

/// A mistake in what the user asked for: exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Some of the input was refused: exit code 65.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BadData(String);

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // There is nobody to tell when stderr is closed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(config::EXIT_CODE) } else { ExitCode::SUCCESS };
        }
    };
    // Load processes take orders there, and end with them.
    if cli.end_with_stdin && !matches!(cli.command, Command::BenchLoad(_)) {
        rig::end_with_stdin();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("job-router: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(Box::pin(run(cli.command)));
    runtime.shutdown_timeout(RUNTIME_END_MAX);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS, // `job-router events | head`
        Err(error) => {
            eprintln!("job-router: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args, stop_signal()?).await,
        Command::Runner(args) => {
            log_at(&args.log)?;
            runner::run(*args).await // it has its own way to end
        }
        Command::BenchLoad(args) => {
            log_at("error")?;
            bench::load::run(args).await // ends with its parent
        }
        command => {
            // Without it, a stop would wait for the next line of a terminal.
            let stop = stop_signal()?;
            match command {
                Command::Dev(args) => dev::run(args, stop).await,
                command => {
                    log_at("warn")?;
                    Box::pin(run_tool(command, stop)).await
                }
            }
        }
    }
}

async fn run_tool(command: Command, stop: CancellationToken) -> anyhow::Result<()> {
    match command {
        Command::Publish(args) => publish::run(args, stop).await,
        Command::RunnerAdd(args) => runner_add::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Jobs(args) => jobs::run(args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Events(args) => events::run(args, stop).await,
        Command::Lanes(args) => lanes::run(args).await,
        Command::LaneOrder(args) => lane_order::run(args).await,
        Command::Pause(args) => pause::pause(args).await,
        Command::Resume(args) => pause::resume(args).await,
        Command::Paused(args) => pause::paused(args).await,
        Command::Bench(args) => Box::pin(bench::run(args, stop)).await,
        Command::Demo(args) => demo::run(args, stop).await,
        Command::Simulate(args) => simulate::run(*args, stop).await,
        Command::Serve(_) | Command::Runner(_) | Command::BenchLoad(_) | Command::Dev(_) => {
            unreachable!("run() keeps these")
        }
    }
}

fn log_at(level: &str) -> anyhow::Result<()> {
    match logging::init(LogFormat::Auto, level) {
        Err(error @ LoggingError::Filter(_)) => Err(Usage(format!("--log: {error}")).into()),
        done => Ok(done?),
    }
}

/// Cancelled by the first Ctrl-C or SIGTERM: stop in good order. The second ends the process at once.
fn stop_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    // Not held: it lives as long as the process, and ends it.
    tokio::spawn(async move {
        for second in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if second {
                std::process::exit(130);
            }
            stopping.cancel();
        }
    });
    Ok(stop)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() || error.is::<Mistakes>() {
        config::EXIT_CODE
    } else if error.is::<BadData>() {
        EXIT_DATA
    } else {
        1
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_help_has_an_example() {
        fn check(command: &mut clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands_mut().filter(|command| command.get_name() != "help").for_each(check);
            } else if !command.is_hide_set() {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example"), "{} has no example", command.get_name());
            }
        }
        Cli::command().debug_assert();
        Cli::command().get_subcommands_mut().filter(|command| !command.is_hide_set()).for_each(check);
    }

    #[test]
    fn a_variable_that_a_subcommand_reads_is_a_mistake_to_no_other() {
        let command = Cli::command();
        let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
        let mut read: Vec<&str> = arguments.filter_map(|argument| argument.get_env()?.to_str()).collect();
        read.sort_unstable();
        let mut passed_over = config::OTHER_VARIABLES;
        passed_over.sort_unstable();
        assert_eq!(read, passed_over);
    }
}
