//! `kubectl egressnat`: see the library.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use kubectl_egressnat::cli::Cli;
use kubectl_egressnat::error::Error;
use kubectl_egressnat::run::run;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(found) => found.into(),
        // A reader that has seen enough, such as `head`, is no error.
        Err(Error::Stdout(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
