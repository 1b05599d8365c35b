//! Pods that start, with the start gate, without it, and without the runtime's cached results as well, in a real cluster:
//! how soon the kernel knows a pod after its address is assigned, what the gate adds to its start, and how long it sends
//! with a wrong address.
//!
//! Each pod sends from its first instruction, to a port of its own. Waves of each way take turns. Two cores with three
//! kubelets start seven pods a second, whatever is asked for, and then everything waits for a core: how a node keeps up with
//! more is measured without kubelets ([`bare`]).

mod bare;
mod plugin;
mod seen;
mod wave;

use std::path::Path;

use anyhow::Result;
use egressnat_e2e::{
    cluster::{Cluster, UNAWARE},
    images,
    kube_proxy::KubeProxyMode,
    network::Network,
    progress::Progress,
    site::{CONTROL_PLANE, Site},
    temporary::Temporary,
};
use serde_json::{Value, json};

pub use self::bare::records as bare;
use self::wave::{Start, Wave};
use crate::{
    results::{Record, Target},
    stats::percentile,
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Waves of each way.
    pub waves: usize,
    /// Pods of a wave, which are created at [`wave::RATE`].
    pub pods: usize,
    /// Pods of a node without a kubelet, each way.
    pub bare: usize,
}

/// How a node hears of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the API server, when that knows the pod's address.
    Unaware,
    /// From the runtime's cached results.
    Ungated,
    /// From the start gate, for which the pod waits.
    Gated,
}

const WAYS: [Way; 3] = [Way::Unaware, Way::Ungated, Way::Gated];

/// What the pods of the waves are known by.
const LABEL: (&str, &str) = ("bench", "start");
const POLICY: &str = "bench";
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(120);

/// Every figure of pods that start.
pub fn records(effort: Effort) -> Result<Vec<Record>> {
    let site = Site::new("egressnat-bench", Path::new(env!("CARGO_BIN_EXE_lab")));
    let progress = Progress::new(false);
    let cluster = Temporary::up(&site, KubeProxyMode::Nftables, Network::Ptp, &progress)?;
    let image = images::build_sender(
        Path::new(env!("CARGO_BIN_EXE_sender")),
        &cluster.site().path("images"),
    )?;
    cluster.load_images(&[image])?;
    cluster.start_echo()?;
    let mut seen = WAYS.map(|_| Vec::new());
    for number in 0..effort.waves {
        for (way, seen) in WAYS.into_iter().zip(&mut seen) {
            install(&cluster, way)?;
            progress.step(&format!("wave {} of {}, {way:?}", number + 1, effort.waves));
            seen.push(Wave::run(&cluster, effort.pods)?);
        }
    }
    cluster.down()?;
    let [unaware, ungated, gated] = seen;
    let mut records = figures(&unaware, &ungated, &gated);
    records.extend(bare::records(effort.bare)?);
    Ok(records)
}

/// The chart with this way, and the policy, in place on every node.
fn install(cluster: &Cluster, way: Way) -> Result<()> {
    cluster.install_chart_with(match way {
        Way::Unaware => &UNAWARE,
        Way::Ungated => &UNAWARE[..1],
        Way::Gated => &[],
    })?;
    // The control plane is the gateway, the pods are on the other nodes.
    let gateway = json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": CONTROL_PLANE.name}}});
    let kubectl = cluster.kubectl();
    kubectl.apply(&policy("0.0.0.0/0", ("egressGateway", gateway)).to_string())?;
    kubectl.run([
        "wait",
        "--for=condition=Programmed",
        "--timeout=60s",
        "egressnatpolicy",
        POLICY,
    ])?;
    Ok(cluster.wait_for_gate(way == Way::Gated)?)
}

/// The pods, to these destinations, by this field of the API.
fn policy(destination: &str, (field, egress): (&str, Value)) -> Value {
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "selectors": [{"podSelector": {"matchLabels": {LABEL.0: LABEL.1}}}],
            "destinationCIDRs": [destination],
            (field): egress,
        },
    })
}

fn figures(unaware: &[Wave], ungated: &[Wave], gated: &[Wave]) -> Vec<Record> {
    // With the gate there must be no wrong packet, and a single one counts as a millisecond.
    let mut records = of_waves("gated", gated, Some(1.0));
    let runs = gated.iter().flat_map(|wave| wave.plugin.clone()).collect();
    records.extend(both("start_gate_added", runs, Some(Target::Below(50.0))));
    records.extend(of_waves("ungated", ungated, Some(250.0)));
    records.extend(of_waves("unaware", unaware, None));
    records
}

/// What was seen of pods that started this way. None may send with a wrong address for so long, in milliseconds.
fn of_waves(way: &str, waves: &[Wave], longest: Option<f64>) -> Vec<Record> {
    let starts = || waves.iter().flat_map(|wave| &wave.starts);
    let of = |value: fn(&Start) -> f64| starts().map(value).collect::<Vec<_>>();
    let name = |figure: &str| format!("{way}_pod_{figure}");
    let wrong = starts().filter(|start| start.wrong > 0.0).count() as f64;
    let rates: Vec<f64> = waves.iter().map(|wave| wave.rate).collect();
    let mut records = vec![
        Record::new(name("starts"), "/s", &rates),
        Record::new(
            name("wrong_source_share"),
            "%",
            &[100.0 * wrong / starts().count() as f64],
        ),
    ];
    records.extend(both(&name("start"), of(|start| start.start), None));
    records.extend(both(&name("programmed"), of(|start| start.programmed), None));
    let longest = longest.map(Target::Below);
    records.extend(both(&name("wrong_source"), of(|start| start.wrong), longest));
    records
}

/// P50 and P99, of which something is asked.
fn both(name: &str, mut samples: Vec<f64>, target: Option<Target>) -> [Record; 2] {
    samples.sort_by(f64::total_cmp);
    let slowest = [percentile(&samples, 0.99)];
    [
        Record::new(name, "ms", &samples),
        Record::new(format!("{name}_p99"), "ms", &slowest).target(target),
    ]
}
