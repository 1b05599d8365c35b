//! `make bench`: what egressnat costs, side by side with what it is compared with, in one run.
//!
//! Everything happens in network namespaces of its own, between their own addresses. With `BENCH_QUICK=1` it
//! takes some minutes, and the figures are rough. With `BENCH_ONLY=planner`, `pods` or `bare` there are only the planner's, those
//! of pods that start, or of these the ones without kubelets, and nothing is written.

mod agent;
mod compare;
mod operator;
mod plain;
mod plan;
mod plot;
mod pods;
mod probe;
mod results;
mod rounds;
mod stats;
mod variant;

use std::{env, fs, thread, time::Duration};

use anyhow::{Result, ensure};
use egressnat_e2e::site::Site;
use k8s_openapi::jiff::Timestamp;

/// How long a run may take.
struct Effort {
    rounds: usize,
    window: probe::Window,
    agent: agent::Effort,
    planner: operator::Effort,
    pods: pods::Effort,
}

const FULL: Effort = Effort {
    rounds: 100,
    window: probe::Window {
        warm_up: Duration::from_millis(50),
        counted: Duration::from_millis(150),
    },
    agent: agent::Effort {
        pods: 50,
        starts: 11,
        idle: Duration::from_secs(65),
    },
    planner: operator::Effort {
        plans: 11,
        events: 1_000,
    },
    pods: pods::Effort {
        waves: 5,
        pods: 60,
        bare: 400,
    },
};

const QUICK: Effort = Effort {
    rounds: 8,
    window: FULL.window,
    agent: agent::Effort {
        pods: 11,
        starts: 3,
        idle: Duration::from_secs(10),
    },
    planner: operator::Effort {
        plans: 3,
        events: 1_000,
    },
    pods: pods::Effort {
        waves: 1,
        pods: 40,
        bare: 100,
    },
};

fn main() -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    ensure!(cores >= 2, "the benchmark needs two cores");
    let effort = match env::var("BENCH_QUICK").as_deref() {
        Ok("" | "0") | Err(_) => FULL,
        Ok(_) => QUICK,
    };
    let only = match env::var("BENCH_ONLY").as_deref() {
        Ok("planner") => Some(operator::records(effort.planner)?),
        Ok("pods") => Some(pods::records(effort.pods)?),
        Ok("bare") => Some(pods::bare(effort.pods.bare)?),
        _ => None,
    };
    if let Some(records) = only {
        results::print(&records);
        return Ok(());
    }
    let mut records = datapath(&effort)?;
    records.extend(operator::records(effort.planner)?);
    eprintln!("bench: the agent, about {} s", effort.agent.idle.as_secs() + 20);
    records.extend(agent::records(effort.agent)?);
    eprintln!("bench: pods that start, {} waves", 3 * effort.pods.waves);
    records.extend(pods::records(effort.pods)?);
    let machine = machine(cores)?;
    println!("\n{machine}\n");
    results::print(&records);
    let folder = Site::target().join("bench");
    fs::create_dir_all(&folder)?;
    results::write(&records, &folder.join("results.json"))?;
    fs::write(folder.join("figures.svg"), plot::svg(&records, &machine))?;
    println!("\n{0}/results.json, {0}/figures.svg", folder.display());
    Ok(())
}

/// On which machine, and when.
fn machine(cores: usize) -> Result<String> {
    let date = Timestamp::now().strftime("%Y-%m-%d");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let version = kernel.trim().split('-').next().unwrap_or_default();
    Ok(format!("{date}, Linux {version}, {cores} cores"))
}

fn datapath(effort: &Effort) -> Result<Vec<results::Record>> {
    eprintln!("bench: making eight worlds of three nodes");
    let worlds = variant::Worlds::new()?;
    let variants = worlds.variants();
    variants.iter().try_for_each(variant::Variant::check)?;
    let samples = rounds::measure(&variants, effort.rounds, effort.window)?;
    Ok(compare::records(&variants, &samples))
}
