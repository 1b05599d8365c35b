//! egressnat-operator: see the library.

use std::process::ExitCode;

use clap::Parser;
use egressnat_operator::cli::{Cli, Command};
use egressnat_operator::error::{Error, chain};
use egressnat_operator::logging;
use egressnat_operator::run::run;
use egressnat_operator::teardown;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logging::start(cli.log_format, &cli.log_level) {
        eprintln!("egressnat-operator: --log-level {:?}: {error}", cli.log_level);
        return ExitCode::from(2);
    }
    match serve(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = chain(error.as_ref()), "stopped");
            ExitCode::FAILURE
        }
    }
}

async fn serve(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    let client = egressnat_api_client::connect()
        .await
        .map_err(|e| Error::Client(Box::new(e)))?;
    let command = cli.command.clone();
    let config = cli.config(client.default_namespace())?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?config, "started");
    let stop = stop_on_signal()?;
    match command {
        None => run(config, client, stop).await?,
        Some(Command::Teardown { deployment, patience }) => {
            teardown::run(client, config.lease, &deployment, patience, stop).await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(stop)
}
