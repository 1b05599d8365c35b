//! Pods that send from their very first instruction, and what the outside sees of them.

use std::collections::BTreeMap;

use egressnat_e2e::{
    capture::Capture,
    cluster::Cluster,
    error::Result,
    netns::Netns,
    site::{ECHO, NodeSpec},
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test,
    scene::{DEADLINE, EGRESS, GATEWAY, Scene, WORKER},
};

pub const TESTS: &[Test] = &[(
    "start_gate::the_first_packets_of_pods_have_the_policys_address",
    the_first_packets_of_pods_have_the_policys_address,
)];

/// The first of the ports at which pods knock, each at its own; nobody listens there.
const FIRST_PORT: usize = 20_000;
/// Pods that start at once on each node.
const PODS: usize = 8;
/// A source node and the gateway.
const ON: [NodeSpec; 2] = [WORKER, GATEWAY];

/// Without the gate some of them send with their node's address first: so the probe would see it.
fn the_first_packets_of_pods_have_the_policys_address(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.apply_policy(json!({}))?;
    cluster.install_chart_with(&["startGate.enabled=false"])?;
    expect_gate(&scene, false)?;
    let result = without_and_with(&scene);
    cluster.install_chart()?;
    scene.delete_policy()?;
    result
}

fn without_and_with(scene: &Scene) -> std::result::Result<(), Failed> {
    let without = first_packets(scene, "ungated")?;
    assert!(
        without.values().any(|seen| seen != EGRESS[0]),
        "without the gate all were right: {without:#?}"
    );
    scene.cluster.install_chart()?;
    expect_gate(scene, true)?;
    let with = first_packets(scene, "gated")?;
    assert!(with.values().all(|seen| seen == EGRESS[0]), "{with:#?}");
    Ok(())
}

/// Runs pods that knock again and again from their first instruction on, and returns with which address the first
/// packet of each was seen, by its port.
fn first_packets(scene: &Scene, run: &str) -> Result<BTreeMap<usize, String>> {
    let all = ON.len() * PODS;
    let last = FIRST_PORT + all - 1;
    let echo = Netns::open(&scene.cluster.site().netns("echo"))?;
    let knocks = format!("tcp dst portrange {FIRST_PORT}-{last} and tcp[tcpflags] & tcp-syn != 0");
    let capture = Capture::start(&echo, "eth0", &knocks)?;
    let pods: Vec<Value> = (0..all).map(|n| pod(run, n)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    scene.kubectl.apply(&list.to_string())?;
    let seen = wait::until("a packet of every pod", DEADLINE, || {
        let seen = firsts(&capture.lines());
        match seen.len() == all {
            true => Ok(seen),
            false => Err(format!("of {all} pods: {seen:?}")),
        }
    });
    let label = format!("run={run}");
    scene
        .kubectl
        .run(["-n", "default", "delete", "pod", "-l", &label, "--grace-period=1"])?;
    capture.stop()?;
    seen
}

/// A pod that knocks at its own port.
fn pod(run: &str, number: usize) -> Value {
    let knock = format!(
        "while :; do nc -w 1 {} {} < /dev/null; done",
        ECHO.0,
        FIRST_PORT + number
    );
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("{run}-{number}"),
            "namespace": "default",
            "labels": {"egress": "chosen", "run": run},
        },
        "spec": {
            "nodeName": ON[number % ON.len()].name,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "toolbox",
                "image": "docker.io/egressnat-lab/toolbox:1",
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", knock],
            }],
        },
    })
}

/// The source address of the first packet to each port, of lines like `... 172.18.0.40.1234 > 172.18.0.5.20003: ...`.
fn firsts(lines: &[String]) -> BTreeMap<usize, String> {
    let mut firsts = BTreeMap::new();
    for line in lines {
        let mut words = line.split_whitespace().rev();
        let arrow = words.by_ref().skip_while(|word| *word != ">").nth(1);
        let to = line.split(" > ").last().and_then(|rest| rest.split(':').next());
        let port = to
            .and_then(|to| to.rsplit('.').next())
            .and_then(|port| port.parse().ok());
        let from = arrow
            .and_then(|from| from.rsplit_once('.'))
            .map(|(address, _)| address.to_owned());
        if let (Some(port), Some(from)) = (port, from) {
            firsts.entry(port).or_insert(from);
        }
    }
    firsts
}

/// Waits until pods wait for their verdict on every node, or on none.
fn expect_gate(scene: &Scene, armed: bool) -> Result<()> {
    wait::until("the plans to say whether pods wait", DEADLINE, || {
        let get = ["get", "egressplans", "-o", "json"];
        let text = scene.kubectl.run(get).map_err(|error| error.to_string())?;
        let plans: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let plans = plans["items"].as_array().into_iter().flatten();
        let said: Vec<bool> = plans.map(is_armed).collect();
        match said == [armed; 3] {
            true => Ok(()),
            false => Err(format!("{said:?}\n{text}")),
        }
    })
}

fn is_armed(plan: &Value) -> bool {
    let mut conditions = plan["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "Gate" && c["status"] == "True")
}
