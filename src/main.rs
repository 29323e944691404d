//! The `job-router` command.

mod commands;

fn main() -> std::process::ExitCode {
    commands::main()
}
