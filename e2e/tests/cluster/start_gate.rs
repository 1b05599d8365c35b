//! Pods that send from their very first instruction, and what the outside sees of them.

use std::{collections::BTreeMap, process::Command};

use egressnat_agent::cni::standing::MARKER_VOLUME;
use egressnat_e2e::{
    cluster::{Cluster, UNAWARE},
    error::Result,
    site::NodeSpec,
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test, knock,
    scene::{DEADLINE, EGRESS, GATEWAY, Scene, WORKER},
};

pub const TESTS: &[Test] = &[
    (
        "start_gate::the_first_packets_of_pods_have_the_policys_address",
        the_first_packets_of_pods_have_the_policys_address,
    ),
    (
        "start_gate::without_agents_only_pods_that_a_policy_may_select_wait",
        without_agents_only_pods_that_a_policy_may_select_wait,
    ),
];

/// A pod that may have to wait.
const WAITS: &str = "waits";
const CHART_NAMESPACE: &str = "egressnat-system";
const AGENTS: &str = "app.kubernetes.io/component=agent";
/// Pods that start at once on each node.
const PODS: usize = 8;
/// Of so many the first packet may be wrong without the gate.
const MOST_WRONG: usize = 4;
/// A source node and the gateway.
const ON: [NodeSpec; 2] = [WORKER, GATEWAY];

/// With the gate. Without it but with the runtime's cached results, of nearly all pods: nobody waits for the agent to have
/// read them. Without both some send with their node's address first: so the probe would see it.
pub fn the_first_packets_of_pods_have_the_policys_address(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.apply_policy(json!({}))?;
    let result = without_and_with(&scene);
    cluster.install_chart()?;
    scene.delete_policy()?;
    result
}

/// And say why, and start when the agents are back.
fn without_agents_only_pods_that_a_policy_may_select_wait(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.apply_policy(json!({}))?;
    cluster.wait_for_gate(true)?;
    // By this the plugin tells an agent that is down from one that was removed.
    let marker = format!("ls -d /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/{MARKER_VOLUME}");
    for node in cluster.nodes() {
        node.output(Command::new("sh").args(["-c", &marker]))?;
    }
    place_agents(&scene, json!({"no": "node"}))?;
    let gone = [
        "-n",
        CHART_NAMESPACE,
        "wait",
        "--for=delete",
        "pod",
        "--timeout=60s",
        "-l",
        AGENTS,
    ];
    scene.kubectl.run(gone)?;
    let result = wait_or_start(&scene);
    place_agents(&scene, Value::Null)?;
    result?;
    expect_started(&scene, "default")?;
    for namespace in ["default", "other"] {
        scene.kubectl.run(["-n", namespace, "delete", "pod", WAITS])?;
    }
    scene.delete_policy()?;
    Ok(())
}

fn wait_or_start(scene: &Scene) -> std::result::Result<(), Failed> {
    for namespace in ["default", "other"] {
        let pod = knock::pod(
            namespace,
            WAITS,
            WORKER,
            json!({"egress": "chosen"}),
            knock::FIRST_PORT,
        );
        scene.kubectl.apply(&pod.to_string())?;
    }
    expect_started(scene, "other")?;
    let why = why_it_waits(scene, WAITS)?;
    let says = "default/waits waits until its egress address is in force";
    assert!(why.contains(says), "{why}");
    assert!(
        why.contains("the agent on this node is down; the kubelet tries again"),
        "{why}"
    );
    Ok(())
}

/// What the Events of a pod say that waits at the gate.
pub fn why_it_waits(scene: &Scene, pod: &str) -> Result<String> {
    wait::until("an Event that says why", DEADLINE, || {
        let field = format!("involvedObject.name={pod},reason=FailedCreatePodSandBox");
        let message = "jsonpath={.items[*].message}";
        let get = [
            "-n",
            "default",
            "get",
            "events",
            "--field-selector",
            &field,
            "-o",
            message,
        ];
        let text = scene.kubectl.run(get).map_err(|error| error.to_string())?;
        match text.contains("egressnat") {
            true => Ok(text),
            false => Err(text),
        }
    })
}

/// Agents run on the nodes with these labels; on all, without any.
pub fn place_agents(scene: &Scene, labels: Value) -> Result<()> {
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": labels}}}}).to_string();
    let agents = [
        "patch",
        "daemonset",
        "egressnat-agent",
        "--type=merge",
        "-p",
        &patch,
    ];
    scene.kubectl.run(["-n", CHART_NAMESPACE].iter().chain(&agents))?;
    Ok(())
}

fn expect_started(scene: &Scene, namespace: &str) -> Result<()> {
    let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "pod", WAITS];
    scene.kubectl.run(["-n", namespace].iter().chain(&ready))?;
    Ok(())
}

fn without_and_with(scene: &Scene) -> std::result::Result<(), Failed> {
    let first = |run: &str, values: &[&str], gate: bool| -> Result<Vec<String>> {
        scene.cluster.install_chart_with(values)?;
        scene.cluster.wait_for_gate(gate)?;
        let seen = first_packets(scene, run)?;
        let wrong: Vec<String> = seen.into_values().filter(|from| from != EGRESS[0]).collect();
        println!(
            "{run}: the first packet of {} of {} pods is wrong",
            wrong.len(),
            ON.len() * PODS
        );
        Ok(wrong)
    };
    let unaware = first("unaware", &UNAWARE, false)?;
    assert!(!unaware.is_empty(), "without anything all were right");
    let ungated = first("ungated", &UNAWARE[..1], false)?;
    assert!(ungated.len() <= MOST_WRONG, "{ungated:?}");
    let gated = first("gated", &[], true)?;
    assert!(gated.is_empty(), "{gated:?}");
    Ok(())
}

/// Runs pods that knock again and again from their first instruction on, and returns with which address the first
/// packet of each was seen, by its port.
fn first_packets(scene: &Scene, run: &str) -> Result<BTreeMap<usize, String>> {
    let all = ON.len() * PODS;
    let capture = knock::capture(scene)?;
    let pod = |n: usize| {
        let labels = json!({"egress": "chosen", "run": run});
        knock::pod(
            "default",
            &format!("{run}-{n}"),
            ON[n % ON.len()],
            labels,
            knock::FIRST_PORT + n,
        )
    };
    let pods: Vec<Value> = (0..all).map(pod).collect();
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

/// The source address of the first packet to each port.
fn firsts(lines: &[String]) -> BTreeMap<usize, String> {
    let mut firsts = BTreeMap::new();
    for (port, from) in knock::seen(lines) {
        firsts.entry(port).or_insert(from);
    }
    firsts
}

/// Waits until the first network configuration of every node has these plugins.
pub fn expect_chain(scene: &Scene, plugins: &[&str]) -> Result<()> {
    wait::until("the gate in the network configuration", DEADLINE, || {
        for node in scene.cluster.nodes() {
            let first = "cd /etc/cni/net.d && cat $(ls *.conflist | head -n 1)";
            let text = node.output(Command::new("sh").args(["-c", first]));
            let text = text.map_err(|error| error.to_string())?;
            let network: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let chain = network["plugins"].as_array().into_iter().flatten();
            let chain: Vec<&Value> = chain.map(|plugin| &plugin["type"]).collect();
            if chain != plugins {
                return Err(format!("{}: {chain:?}", node.spec().name));
            }
        }
        Ok(())
    })
}
