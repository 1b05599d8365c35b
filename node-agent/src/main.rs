//! `egressnat-agent`.

use std::process::ExitCode;

use clap::Parser;
use egressnat_agent::agent;
use egressnat_agent::cli::Cli;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    agent::init_logging(cli.log_format, &cli.log_level);
    match agent::run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(category = error.category(), %error, "stopping");
            ExitCode::FAILURE
        }
    }
}
