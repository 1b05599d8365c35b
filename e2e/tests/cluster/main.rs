//! The cluster rung: tests on real three-node clusters, one after the other.
//!
//! There is a cluster for each network. It comes up before the first test on it and goes down, checked for residue, after
//! the last. A failed test leaves what could be found out in `target/lab/failures`.

mod destinations;
mod first_policy;
mod flannel;
mod gateways;
mod knock;
mod last_packet;
mod lifecycle;
mod masquerade;
mod operator_away;
mod own_address;
mod plugins;
mod pod;
mod reboot;
mod requests;
mod reuse;
mod scene;
mod selection;
mod several_policies;
mod start_gate;
mod traces;
mod walk_through;

use std::{
    fmt::Display,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use egressnat_e2e::{
    cluster::Cluster, dump, kube_proxy::KubeProxyMode, network::Network, progress::Progress, site,
    site::Site, temporary::Temporary,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test: its name and its body.
type Test = (&'static str, fn(&Cluster) -> Result<(), Failed>);

/// The tests on each network.
fn suites() -> [(Network, Vec<Test>); 2] {
    [
        (Network::Ptp, on_ptp()),
        (Network::Flannel, flannel::TESTS.to_vec()),
    ]
}

fn on_ptp() -> Vec<Test> {
    [
        own_address::TESTS,
        walk_through::TESTS,
        selection::TESTS,
        destinations::TESTS,
        first_policy::TESTS,
        gateways::TESTS,
        several_policies::TESTS,
        masquerade::TESTS,
        plugins::TESTS,
        start_gate::TESTS,
        last_packet::TESTS,
        lifecycle::TESTS,
        reboot::TESTS,
        operator_away::TESTS,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The cluster is one; its policies and its kube-proxy are everybody's.
    arguments.test_threads = Some(1);
    let is_wanted = |(name, _): &Test| selected(&arguments, name);
    let wanted: Vec<_> = suites()
        .into_iter()
        .filter(|(_, tests)| tests.iter().any(is_wanted))
        .collect();
    if arguments.list || wanted.is_empty() {
        let all = suites().into_iter().flat_map(|(_, tests)| tests).collect();
        return libtest_mimic::run(&arguments, trials(all, None)).exit_code();
    }
    let results: Vec<_> = wanted
        .into_iter()
        .map(|(network, tests)| run(&arguments, network, tests))
        .collect();
    let failed = results.into_iter().find(|result| *result != ExitCode::SUCCESS);
    failed.unwrap_or(ExitCode::SUCCESS)
}

/// Runs the tests on a cluster with this network.
fn run(arguments: &Arguments, network: Network, tests: Vec<Test>) -> ExitCode {
    let site = Site::new(site::TEST, Path::new(env!("CARGO_BIN_EXE_lab")));
    let progress = Progress::new(false);
    let cluster = match Temporary::up(&site, KubeProxyMode::Nftables, network, &progress) {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => return fail("up", &error),
    };
    let conclusion = libtest_mimic::run(arguments, trials(tests, Some(&cluster)));
    let Some(cluster) = Arc::into_inner(cluster) else {
        return fail("down", &"a test still holds the cluster");
    };
    match cluster.down() {
        Ok(()) => conclusion.exit_code(),
        Err(error) => fail("down", &error),
    }
}

/// As libtest-mimic selects by the command line: nothing named means all.
fn selected(arguments: &Arguments, name: &str) -> bool {
    let hit = |filter: &String| {
        if arguments.exact {
            name == filter
        } else {
            name.contains(filter.as_str())
        }
    };
    arguments.filter.as_ref().is_none_or(hit) && !arguments.skip.iter().any(hit)
}

fn trials(tests: Vec<Test>, cluster: Option<&Arc<Temporary>>) -> Vec<Trial> {
    let trial = |(name, body): Test| {
        let cluster = cluster.map(Arc::clone);
        Trial::test(name, move || {
            let cluster = cluster.ok_or("there is no cluster")?;
            guarded(|| body(&cluster)).map_err(|failed| with_dump(&cluster, name, &failed))
        })
    };
    tests.into_iter().map(trial).collect()
}

/// A failed assertion is a failure like any other: it gets its dump as well.
fn guarded(body: impl FnOnce() -> Result<(), Failed>) -> Result<(), Failed> {
    panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(text.unwrap_or_else(|| "it panicked".into()).into())
    })
}

fn with_dump(cluster: &Cluster, name: &str, failed: &Failed) -> Failed {
    let why = failed.message().unwrap_or("failed");
    match dump::write(cluster, name) {
        Ok(folder) => format!("{why}\nwhat could be found out: {}", folder.display()).into(),
        Err(error) => format!("{why}\n{error}").into(),
    }
}

fn fail(step: &str, error: &dyn Display) -> ExitCode {
    eprintln!("the tests' cluster, {step}: {error}");
    ExitCode::FAILURE
}
