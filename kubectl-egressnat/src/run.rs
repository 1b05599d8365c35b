//! From the command line to the answer.

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::cluster::Cluster;
use crate::error::Error;
use crate::explain::explain;
use crate::output::{self, Format};
use crate::status::Status;
use crate::watch::watch;

/// What an answer means for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing is wrong.
    Fine,
    /// Something is.
    Wrong,
}

impl Found {
    fn of_wrong(wrong: bool) -> Self {
        if wrong { Self::Wrong } else { Self::Fine }
    }
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
            output::print(output, &explanation, || explanation.to_string())?;
            Ok(Found::Fine)
        }
        Command::Status { output, watch } => {
            let cluster = Cluster::connect(&cli.cluster).await?;
            status(&cluster, output, watch).await
        }
    }
}

async fn status(cluster: &Cluster, format: Format, watching: bool) -> Result<Found, Error> {
    let table = |status: &Status| status.table(output::colour());
    // Asked for first even when watching: a watch would try for ever where there is no way or no right.
    let status = Status::of(&cluster.policies_and_plans().await?);
    if !watching {
        output::print(format, &status, || table(&status))?;
        return Ok(Found::of_wrong(status.is_wrong()));
    }
    let mut shown = None;
    watch(cluster, |world| {
        let status = Status::of(world);
        if shown.as_ref() != Some(&status) {
            output::print_again(format, &status, || table(&status))?;
            shown = Some(status);
        }
        Ok(())
    })
    .await?;
    Ok(Found::Fine)
}
