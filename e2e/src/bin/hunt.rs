//! `hunt`: the leak hunt, in a cluster of its own.

use std::{
    env,
    path::Path,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use egressnat_e2e::{
    hunt::{self, Report, Safeguard, Settings},
    progress::Progress,
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
    /// Try this safeguard more than others.
    #[arg(long, value_enum)]
    favour: Option<Safeguard>,
    /// A value for the chart, as helm's `--set` takes it.
    #[arg(long = "set")]
    values: Vec<String>,
    /// Leave a safeguard out: the hunt finds the leak that it is against.
    #[arg(long, value_enum)]
    without: Vec<Safeguard>,
    /// Instead, leave out each safeguard in turn (or those named), and fail unless the hunt finds the leak.
    #[arg(long)]
    prove: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hunt: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let program = env::current_exe().context("find this program's path")?;
    let programs = program.parent().context("find this program's folder")?;
    let seed = cli.seed.unwrap_or_else(any_seed);
    if cli.prove {
        return prove(cli, seed, programs);
    }
    let settings = Settings {
        pods: cli.pods,
        changes: cli.changes,
        seed,
        until_wrong: cli.until_wrong,
        favour: cli.favour,
        values: cli.values.clone(),
        without: cli.without.clone(),
    };
    let report = hunt::run(programs, &settings, &Progress::new(false))?;
    Ok(show(&report))
}

fn show(report: &Report) -> ExitCode {
    print!("{report}");
    let failure = report.failure();
    if let Some(failure) = &failure {
        println!("FAILED: {failure}");
    }
    println!("{}", report.json());
    failure.map_or(ExitCode::SUCCESS, |_| ExitCode::FAILURE)
}

fn prove(cli: &Cli, seed: u64, programs: &Path) -> Result<ExitCode> {
    let safeguards = match cli.without.as_slice() {
        [] => Safeguard::value_variants(),
        named => named,
    };
    let mut proofs = Vec::new();
    for without in safeguards {
        let proof = hunt::prove(programs, *without, seed, &Progress::new(false))?;
        print!("{}", proof.report);
        println!("{proof}\n");
        proofs.push(proof);
    }
    for proof in &proofs {
        println!("{proof}");
    }
    let all = proofs.iter().all(hunt::Proof::holds);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn any_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos())
}
