//! The cluster rung: tests on a real three-node cluster that they share, one after the other.
//!
//! The cluster comes up before the first test and goes down, checked for residue, after the last. A failed
//! test leaves what could be found out in `target/lab/failures`.

mod destinations;
mod first_policy;
mod gateways;
mod lifecycle;
mod masquerade;
mod own_address;
mod pod;
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
    cluster::Cluster, dump, kube_proxy::KubeProxyMode, progress::Progress, site, site::Site,
    temporary::Temporary,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// A test: its name and its body.
type Test = (&'static str, fn(&Cluster) -> Result<(), Failed>);

fn tests() -> Vec<Test> {
    [
        own_address::TESTS,
        walk_through::TESTS,
        selection::TESTS,
        destinations::TESTS,
        first_policy::TESTS,
        gateways::TESTS,
        several_policies::TESTS,
        masquerade::TESTS,
        start_gate::TESTS,
        lifecycle::TESTS,
    ]
    .concat()
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The cluster is one; its policies and its kube-proxy are everybody's.
    arguments.test_threads = Some(1);
    let wanted = tests()
        .into_iter()
        .filter(|(name, _)| selected(&arguments, name))
        .count();
    if arguments.list || wanted == 0 {
        return libtest_mimic::run(&arguments, trials(None)).exit_code();
    }
    let site = Site::new(site::TEST, Path::new(env!("CARGO_BIN_EXE_lab")));
    let cluster = match Temporary::up(&site, KubeProxyMode::Nftables, &Progress::new(false)) {
        Ok(cluster) => Arc::new(cluster),
        Err(error) => return fail("up", &error),
    };
    let conclusion = libtest_mimic::run(&arguments, trials(Some(&cluster)));
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

fn trials(cluster: Option<&Arc<Temporary>>) -> Vec<Trial> {
    let trial = |(name, body): Test| {
        let cluster = cluster.map(Arc::clone);
        Trial::test(name, move || {
            let cluster = cluster.ok_or("there is no cluster")?;
            guarded(|| body(&cluster)).map_err(|failed| with_dump(&cluster, name, &failed))
        })
    };
    tests().into_iter().map(trial).collect()
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
