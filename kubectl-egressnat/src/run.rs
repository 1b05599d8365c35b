//! From the command line to the answer.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;
use egressnat_crds::EgressNATPolicy;
use k8s_openapi::jiff::Timestamp;

use crate::cli::{Cli, Command};
use crate::cluster::Cluster;
use crate::documents::{self, Document};
use crate::error::Error;
use crate::explain::explain;
use crate::lint::lint;
use crate::migrate::migrate;
use crate::output::{self, Format};
use crate::plan::diff::diff;
use crate::plan::node::node_plan;
use crate::snapshot::Snapshot;
use crate::status::Status;
use crate::watch::watch;
use crate::words;

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
        Command::Lint { files, output } => {
            let report = lint(&documents::read(&files)?);
            output::print(output, &report, || report.to_string())?;
            Ok(Found::of_wrong(!report.problems.is_empty()))
        }
        Command::Migrate {
            files,
            from_cluster,
            output,
        } => {
            let documents = match from_cluster {
                true => Cluster::connect(&cli.cluster).await?.foreign_policies().await?,
                false => documents::read(&files)?,
            };
            let migration = migrate(&documents);
            migration
                .refused
                .iter()
                .for_each(|refused| eprintln!("refused: {refused}"));
            output::print(output, &migration, || migration.to_string())?;
            let nothing = migration.policies.is_empty();
            Ok(Found::of_wrong(nothing || !migration.refused.is_empty()))
        }
        Command::Completion { shell } => completion(shell),
        Command::Plan { node, diff, output } => {
            // Read first: a file that is not there is no reason to ask the cluster.
            let policies = policies(&diff)?;
            let snapshot = Cluster::connect(&cli.cluster).await?.snapshot().await?;
            match (policies, node) {
                (Some(policies), node) => plan_diff(&snapshot, &policies, node.as_deref(), output),
                (None, node) => plan(&snapshot, &node.unwrap_or_default(), output),
            }
        }
    }
}

fn completion(shell: Shell) -> Result<Found, Error> {
    let mut script = Vec::new();
    let mut command = Cli::command().bin_name("kubectl-egressnat");
    clap_complete::generate(shell, &mut command, "kubectl-egressnat", &mut script);
    output::write(&String::from_utf8_lossy(&script))?;
    Ok(Found::Fine)
}

fn plan(snapshot: &Snapshot, node: &str, format: Format) -> Result<Found, Error> {
    let plan = node_plan(snapshot, node).ok_or_else(|| Error::NoNode(node.to_owned()))?;
    let text = plan.text()?;
    output::print(format, &plan, || text)?;
    Ok(Found::Fine)
}

fn plan_diff(
    snapshot: &Snapshot,
    policies: &[EgressNATPolicy],
    only: Option<&str>,
    format: Format,
) -> Result<Found, Error> {
    if let Some(node) = only.filter(|n| !snapshot.world.nodes.contains_key(*n)) {
        return Err(Error::NoNode(node.to_owned()));
    }
    let mut diff = diff(&snapshot.world, policies, Timestamp::now());
    diff.nodes.retain(|n| only.is_none_or(|only| n.name == only));
    output::print(format, &diff, || diff.to_string())?;
    Ok(Found::of_wrong(diff.is_wrong()))
}

/// The policies of the files, `None` for no files.
fn policies(files: &[PathBuf]) -> Result<Option<Vec<EgressNATPolicy>>, Error> {
    if files.is_empty() {
        return Ok(None);
    }
    let documents = documents::read(files)?.into_iter().filter(Document::is_policy);
    let policies = documents.map(|document| {
        let place = document.place;
        serde_json::from_value(document.object).map_err(|source| Error::Policy { place, source })
    });
    let policies: Vec<EgressNATPolicy> = policies.collect::<Result<_, _>>()?;
    match policies.is_empty() {
        true => Err(Error::NoPolicy(words::join(
            &files.iter().map(|f| f.display()).collect::<Vec<_>>(),
        ))),
        false => Ok(Some(policies)),
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
