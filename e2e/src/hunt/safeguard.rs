//! What keeps packets from leaking, and the product without one of it.

use clap::ValueEnum;

use super::{judge::Why, report::Report};
use crate::{
    cluster::{Cluster, UNAWARE},
    error::Result,
};

const NAMESPACE: &str = "egressnat-system";
/// The variable by which operator and agents are told to leave a safeguard out.
const VARIABLE: &str = "EGRESSNAT_UNSAFE_WITHOUT";

/// Something without which packets leave with a wrong address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Safeguard {
    /// A pod starts only when its node knows its verdict. What else tells the node of most pods in time, the runtime's
    /// cached results, is left out with it.
    Gate,
    /// Nodes follow one another: no source before its gateway.
    Order,
    /// Connections that a new verdict contradicts are deleted.
    Conntrack,
    /// The id of a deleted policy is given to another only when no node uses it any more.
    Quarantine,
}

/// Installs the chart with these values, without these safeguards, and waits until everything is ready.
///
/// # Errors
/// When helm refuses, or something is not ready in time.
pub fn install(cluster: &Cluster, values: &[String], without: &[Safeguard]) -> Result<()> {
    // With one more, another leads when the leader is killed.
    let mut values: Vec<&str> = ["operator.replicas=2"]
        .into_iter()
        .chain(values.iter().map(String::as_str))
        .collect();
    if without.contains(&Safeguard::Gate) {
        values.extend(UNAWARE);
    }
    cluster.install_chart_with(&values)?;
    let names = |named: &dyn Fn(&Safeguard) -> Option<&'static str>| {
        let names: Vec<&str> = without.iter().filter_map(named).collect();
        names.join(",")
    };
    leave_out(
        cluster,
        "deployment/egressnat-operator",
        &names(&Safeguard::of_operator),
    )?;
    leave_out(cluster, "daemonset/egressnat-agent", &names(&Safeguard::of_agent))
}

impl Safeguard {
    /// Whether a hunt without it has found what it is against.
    #[must_use]
    pub fn shows(self, report: &Report) -> bool {
        match self {
            Self::Gate => report.wrong_for(Why::OwnNode) > 0,
            Self::Order => report.misdirected > 0,
            Self::Conntrack => report.tally.wrong > 0,
            Self::Quarantine => report.wrong_for(Why::OtherPolicy) > 0,
        }
    }

    fn of_operator(&self) -> Option<&'static str> {
        match self {
            Self::Order => Some("order"),
            Self::Quarantine => Some("quarantine"),
            Self::Gate | Self::Conntrack => None,
        }
    }

    fn of_agent(&self) -> Option<&'static str> {
        (*self == Self::Conntrack).then_some("conntrack")
    }
}

fn leave_out(cluster: &Cluster, workload: &str, names: &str) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let kubectl = cluster.kubectl();
    let set = format!("{VARIABLE}={names}");
    kubectl.run(["-n", NAMESPACE, "set", "env", workload, &set])?;
    kubectl.run(["-n", NAMESPACE, "rollout", "status", workload, "--timeout=120s"])?;
    Ok(())
}
