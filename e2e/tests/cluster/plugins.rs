//! Pods with the links that the standard plugins `bridge` and `ptp` make, with and without their `ipMasq`, where nothing
//! else masquerades.

use std::net::IpAddr;

use egressnat_e2e::{
    capture::Capture,
    cluster::Cluster,
    error::Result,
    netns::Netns,
    network::{self, MASQUERADE},
    node::{BRIDGE, Plugin},
    site::NodeSpec,
};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test,
    masquerade::on_every_node,
    pod::{self, Pod},
    scene::{DEADLINE, GATEWAY, Scene, WORKER, egress, own},
    start_gate,
};

pub const TESTS: &[Test] = &[
    ("plugins::bridge_with_ip_masq", |cluster| {
        serves(cluster, Plugin::Bridge, true)
    }),
    ("plugins::bridge_without_ip_masq", |cluster| {
        serves(cluster, Plugin::Bridge, false)
    }),
    ("plugins::ptp_with_ip_masq", |cluster| {
        serves(cluster, Plugin::Ptp, true)
    }),
    ("plugins::ptp_without_ip_masq", |cluster| {
        serves(cluster, Plugin::Ptp, false)
    }),
];

/// A source node and the gateway.
const ON: [NodeSpec; 2] = [WORKER, GATEWAY];

fn serves(cluster: &Cluster, plugin: Plugin, masquerades: bool) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    scene.apply_policy(json!({}))?;
    on_every_node(cluster, &format!("delete table {MASQUERADE}"))?;
    configure(&scene, plugin, masquerades)?;
    let result = started_now(&scene, masquerades);
    configure(&scene, Plugin::Ptp, false)?;
    on_every_node(cluster, &network::masquerade())?;
    if plugin == Plugin::Bridge {
        for node in ON {
            let node = cluster.node(node.name)?;
            node.netns()?.ip(&format!("link del {BRIDGE}"))?;
        }
    }
    scene.delete_policy()?;
    result
}

/// On every node, and returns when the gate is in the new configuration.
fn configure(scene: &Scene, plugin: Plugin, masquerades: bool) -> Result<()> {
    for node in scene.cluster.nodes() {
        node.configure(plugin, masquerades)?;
    }
    let name = match plugin {
        Plugin::Ptp => "ptp",
        Plugin::Bridge => "bridge",
    };
    start_gate::expect_chain(scene, &[name, "egressnat-cni"])
}

/// A selected pod and another on a source node and on the gateway. What nobody masquerades reaches the outside with its
/// pod's address, and nothing comes back; what is selected never does.
fn started_now(scene: &Scene, masquerades: bool) -> std::result::Result<(), Failed> {
    let mut selected = Vec::new();
    let mut others = Vec::new();
    for (index, node) in ON.into_iter().enumerate() {
        let run = |name: String, labels| Pod::run(scene.kubectl, &name, node, labels, json!({}));
        selected.push(run(format!("chosen-{index}"), json!({"egress": "chosen"}))?);
        others.push(run(format!("other-{index}"), json!({}))?);
    }
    let echo = Netns::open(&scene.cluster.site().netns("echo"))?;
    let capture = Capture::start(&echo, "eth0", "net 10.244.0.0/16 or net fd00:10:244::/56")?;
    let expected = selected.iter().map(|pod| (pod, egress()));
    let of_others = |pod| if masquerades { own(pod) } else { [None, None] };
    let expected: Vec<_> = expected
        .chain(others.iter().map(|pod| (pod, of_others(pod))))
        .collect();
    scene.expect("pods that started with these links", &expected)?;
    let shown =
        |address: IpAddr| move |line: &str| line.contains(&format!(" {address}.")) && line.contains(" > ");
    if !masquerades {
        for address in others.iter().flat_map(|pod| pod.addresses) {
            capture.wait_for("a packet with its pod's address", DEADLINE, shown(address))?;
        }
    }
    let lines = capture.stop()?;
    for address in selected.iter().flat_map(|pod| pod.addresses) {
        let wrong: Vec<_> = lines.iter().filter(|line| shown(address)(line)).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    for pod in selected.iter().chain(&others) {
        pod::delete(scene.kubectl, &pod.name)?;
    }
    Ok(())
}
