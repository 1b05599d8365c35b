//! `hunt`: the leak hunt, in a cluster of its own.

use std::{
    env,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::Parser;
use egressnat_e2e::{
    hunt::{self, Report, Safeguard, Settings},
    kube_proxy::KubeProxyMode,
    progress::Progress,
    site::Site,
    temporary::Temporary,
};

/// Looks for packets that leave with a wrong address, in a real cluster in which everything changes.
///
/// The last line of its output is one JSON object. It fails when a packet was wrong, and when it saw none.
#[derive(Debug, Parser)]
#[command(name = "hunt", version)]
struct Cli {
    /// At least so many pods.
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// At least so many changes.
    #[arg(long, default_value_t = 1_000)]
    changes: usize,
    /// What it is made from; printed, so that a hunt can be made again.
    #[arg(long)]
    seed: Option<u64>,
    /// End at once when a packet was wrong.
    #[arg(long)]
    until_wrong: bool,
    /// A value for the chart, as helm's `--set` takes it.
    #[arg(long = "set")]
    values: Vec<String>,
    /// Leave a safeguard out: the hunt finds the leak that it is against.
    #[arg(long, value_enum)]
    without: Vec<Safeguard>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(report) => {
            print!("{report}");
            let failure = report.failure();
            if let Some(failure) = &failure {
                println!("FAILED: {failure}");
            }
            println!("{}", report.json());
            failure.map_or(ExitCode::SUCCESS, |_| ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("hunt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<Report> {
    let programs = env::current_exe().context("find this program's path")?;
    let site = Site::new("egressnat-hunt", &programs.with_file_name("lab"));
    let settings = Settings {
        pods: cli.pods,
        changes: cli.changes,
        seed: cli.seed.unwrap_or_else(any_seed),
        until_wrong: cli.until_wrong,
        sender: programs.with_file_name("sender"),
    };
    let progress = Progress::new(false);
    let cluster = Temporary::up(&site, KubeProxyMode::Nftables, &progress)?;
    hunt::install(&cluster, &cli.values, &cli.without)?;
    let report = hunt::run(&cluster, &settings, &progress)?;
    cluster.down()?;
    Ok(report)
}

fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos())
}
