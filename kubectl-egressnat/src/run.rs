//! From the command line to the answer.

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::explain::explain;
use crate::output;

/// What an answer means for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing is wrong.
    Fine,
    /// Something is.
    Wrong,
}

impl From<Found> for ExitCode {
    fn from(found: Found) -> Self {
        match found {
            Found::Fine => Self::SUCCESS,
            Found::Wrong => Self::FAILURE,
        }
    }
}

/// Answers.
pub async fn run(cli: Cli) -> Result<Found, Error> {
    match cli.command {
        Command::Explain { pod, to, output } => {
            let cluster = Cluster::connect(&cli.cluster).await?;
            let name = pod.split_once('/').map_or(pod.as_str(), |(_kind, name)| name);
            let key = format!("{}/{name}", cluster.namespace);
            let explanation = explain(&cluster.snapshot().await?, &key, to).ok_or_else(|| Error::NoPod {
                namespace: cluster.namespace.clone(),
                name: name.to_owned(),
            })?;
            output::print(&explanation, output)?;
            Ok(Found::Fine)
        }
    }
}
