//! Real flannel as the cluster's network, with its VXLAN backend, for both families.

use std::process::Command;

use egressnat_e2e::{
    cluster::Cluster,
    error::Result,
    flannel::{self, CONFIGURATION, Rules},
    kube_proxy::KubeProxyMode,
    node::Node,
    walk,
};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test, lifecycle,
    scene::{Scene, egress, own},
    start_gate, traces,
};

pub const TESTS: &[Test] = &[
    ("flannel::walk_through", walk_through),
    (
        "flannel::the_first_packets_of_pods_have_the_policys_address",
        start_gate::the_first_packets_of_pods_have_the_policys_address,
    ),
    (
        "flannel::restarts_and_other_rules_fail_no_request",
        restarts_and_other_rules_fail_no_request,
    ),
    (
        "flannel::uninstalled_its_configuration_is_as_flannel_wrote_it",
        uninstalled_its_configuration_is_as_flannel_wrote_it,
    ),
];

/// What flannel writes, and the gate.
const CHAIN: [&str; 3] = ["flannel", "portmap", "egressnat-cni"];

fn walk_through(cluster: &Cluster) -> std::result::Result<(), Failed> {
    cluster.start_echo()?;
    cluster.install_chart()?;
    for node in cluster.nodes() {
        let links = node.output(Command::new("ip").args(["-d", "-o", "link"]))?;
        for device in [" flannel.1:", " flannel-v6.1:", " vxlan id 1 ", " dstport 8472 "] {
            assert!(
                links.contains(device),
                "{}: no{device}in\n{links}",
                node.spec().name
            );
        }
    }
    Ok(walk::run(cluster.kubectl(), |_, _| {})?)
}

/// flannel ends and comes again, copies its CNI configuration over the one that the gate is in, and changes from iptables
/// to nftables and back; kube-proxy changes likewise.
fn restarts_and_other_rules_fail_no_request(cluster: &Cluster) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = lifecycle::choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    start_gate::expect_chain(&scene, &CHAIN)?;
    let served = lifecycle::serve(&scene, &pods)?;
    for (rules, mode) in [
        (Rules::Iptables, KubeProxyMode::Nftables),
        (Rules::Nftables, KubeProxyMode::Iptables),
        (Rules::Nftables, KubeProxyMode::None),
        (Rules::Iptables, KubeProxyMode::Nftables),
    ] {
        flannel::apply(scene.kubectl, rules)?;
        flannel::restart(scene.kubectl)?;
        cluster.set_kube_proxy(mode)?;
        start_gate::expect_chain(&scene, &CHAIN)?;
        served.wait_for_more()?;
    }
    served.end(&scene)?;
    scene.delete_policy()?;
    scene.expect("no policy", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    Ok(())
}

fn uninstalled_its_configuration_is_as_flannel_wrote_it(
    cluster: &Cluster,
) -> std::result::Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = lifecycle::choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    start_gate::expect_chain(&scene, &CHAIN)?;
    lifecycle::uninstall(&scene, &[])?;
    traces::expect_none(&scene)?;
    lifecycle::expect_plugin(&scene, false)?;
    for node in cluster.nodes() {
        assert_eq!(configuration(&node)?, flannel::configuration());
    }
    scene.expect("uninstalled", &pods.each_ref().map(|pod| (pod, own(pod))))?;
    Ok(())
}

fn configuration(node: &Node) -> Result<String> {
    node.output(Command::new("cat").arg(CONFIGURATION))
}
