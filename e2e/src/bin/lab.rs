//! `lab`: brings the egressnat lab up and down; see `lab help`.

use std::process::ExitCode;

use clap::Parser;
use egressnat_e2e::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
