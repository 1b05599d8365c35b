//! Nodes whose power is cut, and that boot with an empty kernel.

use std::time::Duration;

use egressnat_e2e::{
    cluster::Cluster,
    error::Result,
    kube_proxy::KubeProxyMode,
    power,
    site::{CONTROL_PLANE, NodeSpec},
    wait,
};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::{
    Test, knock, lifecycle,
    pod::Pod,
    requests::Served,
    scene::{DEADLINE, EGRESS, GATEWAY, POLICY, Scene, WORKER, condition, egress},
    start_gate,
};

pub const TESTS: &[Test] = &[
    (
        "reboot::a_source_nodes_pods_send_nothing_before_their_agent",
        a_source_nodes_pods_send_nothing_before_their_agent,
    ),
    ("reboot::a_gateway_heals", a_gateway_heals),
];

/// Where the selected pod knocks, and where another does.
const PORTS: [usize; 2] = [knock::FIRST_PORT, knock::FIRST_PORT + 1];
const AGENTS: &str = "agents=run";
/// How long it may take to be said that a node is gone: Kubernetes notices within a minute, and starts the operator anew
/// elsewhere half a minute later where it was on that node.
const NOT_READY: Duration = Duration::from_secs(180);

/// The node boots without its agent at first: the pods of others start and send, the selected one waits. Meanwhile other
/// nodes' pods notice nothing.
fn a_source_nodes_pods_send_nothing_before_their_agent(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = lifecycle::choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    run_knockers(&scene, WORKER)?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    scene.kubectl.run(["label", "node", "--all", AGENTS])?;
    start_gate::place_agents(&scene, json!({"agents": "run"}))?;
    lifecycle::system(
        &scene,
        &["rollout", "status", "daemonset/egressnat-agent", "--timeout=60s"],
    )?;

    let elsewhere = pods.iter().filter(|pod| pod.node != WORKER);
    let served = Served::start(&scene, elsewhere)?;
    let capture = knock::capture(&scene)?;
    let node = cluster.node(WORKER.name)?;
    power::cut(cluster, &node)?;
    let before = capture.lines().len();
    scene.kubectl.run(["label", "node", WORKER.name, "agents-"])?;
    power::restore(cluster, &node, KubeProxyMode::Nftables)?;
    knock::expect_seen(&capture, before, PORTS[1], &WORKER.v4.to_string())?;
    let why = start_gate::why_it_waits(&scene, "knocks")?;
    assert!(why.contains("the agent on this node is down"), "{why}");
    let early = knock::sources(&capture.lines()[before..], PORTS[0]);
    assert!(early.is_empty(), "before its agent: {early:?}");

    scene.kubectl.run(["label", "node", WORKER.name, AGENTS])?;
    knock::expect_seen(&capture, before, PORTS[0], EGRESS[0])?;
    let all = knock::sources(&capture.stop()?[before..], PORTS[0]);
    assert!(all.iter().all(|from| from == EGRESS[0]), "{all:?}");
    served.end(&scene)?;
    start_gate::place_agents(&scene, Value::Null)?;
    scene.kubectl.run(["label", "node", "--all", "agents-"])?;
    end(&scene)
}

/// Until it is back its policy's pods are dropped, on it and elsewhere; then all is as before, by itself.
fn a_gateway_heals(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    lifecycle::choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    run_knockers(&scene, GATEWAY)?;
    let remote = knock::pod(
        "default",
        "remote",
        CONTROL_PLANE,
        json!({"egress": "chosen"}),
        PORTS[0] + 2,
    );
    scene.kubectl.apply(&remote.to_string())?;
    let capture = knock::capture(&scene)?;
    for port in [PORTS[0], PORTS[0] + 2] {
        knock::expect_seen(&capture, 0, port, EGRESS[0])?;
    }
    let node = cluster.node(GATEWAY.name)?;
    power::cut(cluster, &node)?;
    wait::until(
        "the policy to say that its gateway is not Ready",
        NOT_READY,
        || {
            let policy = scene.shown(POLICY).map_err(|error| error.to_string())?;
            let condition = condition(&policy, "GatewayReady");
            match condition["reason"] == "GatewayNotReady" {
                true => Ok(()),
                false => Err(condition.to_string()),
            }
        },
    )?;
    let before = capture.lines().len();
    power::restore(cluster, &node, KubeProxyMode::Nftables)?;
    scene.give(GATEWAY, EGRESS)?;
    for port in [PORTS[0], PORTS[0] + 2] {
        knock::expect_seen(&capture, before, port, EGRESS[0])?;
    }
    knock::expect_seen(&capture, before, PORTS[1], &GATEWAY.v4.to_string())?;
    let lines = capture.stop()?;
    for port in [PORTS[0], PORTS[0] + 2] {
        let all = knock::sources(&lines, port);
        assert!(all.iter().all(|from| from == EGRESS[0]), "{port}: {all:?}");
    }
    let pods = back(&scene)?;
    scene.expect(
        "a gateway that is back",
        &pods.each_ref().map(|pod| (pod, egress())),
    )?;
    scene.kubectl.run(["-n", "default", "delete", "pod", "remote"])?;
    end(&scene)
}

/// A selected pod and one of a namespace that no policy selects from.
fn run_knockers(scene: &Scene, node: NodeSpec) -> Result<()> {
    for (namespace, port) in ["default", "other"].into_iter().zip(PORTS) {
        let pod = knock::pod(namespace, "knocks", node, json!({"egress": "chosen"}), port);
        scene.kubectl.apply(&pod.to_string())?;
        let ready = ["wait", "--for=condition=Ready", "--timeout=30s", "pod", "knocks"];
        scene.kubectl.run(["-n", namespace].into_iter().chain(ready))?;
    }
    Ok(())
}

/// Waits until the pods of the node that has booted have their new addresses.
fn back(scene: &Scene) -> Result<[Pod; 3]> {
    scene.cluster.wait_ready()?;
    wait::until("a pod on every node", DEADLINE, || {
        scene.peers()?;
        scene.tshoot()
    })
}

fn end(scene: &Scene) -> std::result::Result<(), Failed> {
    back(scene)?;
    for namespace in ["default", "other"] {
        scene.kubectl.run(["-n", namespace, "delete", "pod", "knocks"])?;
    }
    scene.delete_policy()?;
    Ok(())
}
