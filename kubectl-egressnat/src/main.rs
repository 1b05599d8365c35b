//! `kubectl egressnat`: see the library.

use std::process::ExitCode;

use clap::Parser;
use kubectl_egressnat::cli::Cli;
use kubectl_egressnat::run::run;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(found) => found.into(),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
