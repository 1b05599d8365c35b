//! The README's walk-through, judged by what the external echo server sees: a pod on the gateway node and pods
//! off it, IPv4 and IPv6, however Services work on the nodes, and whatever other policies there are.

use egressnat_e2e::{
    cluster::Cluster,
    kube_proxy::KubeProxyMode,
    kubectl::Kubectl,
    site::{CONTROL_PLANE, NodeSpec},
    walk,
};
use libtest_mimic::Failed;
use serde_json::json;

use crate::{
    Test, lifecycle,
    scene::{COMES_AFTER, COMES_FIRST, NOBODY, OUTSIDE, Scene, WORKER, companion, egress},
};

pub const TESTS: &[Test] = &[
    ("walk_through::kube_proxy_nftables", |cluster| {
        walk_through(cluster, KubeProxyMode::Nftables)
    }),
    ("walk_through::kube_proxy_iptables", |cluster| {
        walk_through(cluster, KubeProxyMode::Iptables)
    }),
    ("walk_through::kube_proxy_none", |cluster| {
        walk_through(cluster, KubeProxyMode::None)
    }),
    (
        "walk_through::kube_proxy_restarts_and_changes_without_a_failed_or_wrong_request",
        kube_proxy_restarts_and_changes_without_a_failed_or_wrong_request,
    ),
];

fn walk_through(cluster: &Cluster, mode: KubeProxyMode) -> Result<(), Failed> {
    cluster.set_kube_proxy(mode)?;
    cluster.start_echo()?;
    cluster.install_chart()?;
    walk::run(cluster.kubectl(), |_, _| {})?;
    let result = beside_others(cluster.kubectl());
    cluster.kubectl().run(["delete", "egressnatpolicies", "--all"])?;
    result
}

/// In each mode it ends and starts again, its rules made anew; then comes the next mode.
fn kube_proxy_restarts_and_changes_without_a_failed_or_wrong_request(
    cluster: &Cluster,
) -> Result<(), Failed> {
    let scene = Scene::new(cluster)?;
    let pods = lifecycle::choose_all(&scene)?;
    scene.apply_policy(json!({}))?;
    scene.expect("the policy", &pods.each_ref().map(|pod| (pod, egress())))?;
    let served = lifecycle::serve(&scene, &pods)?;
    for mode in [
        KubeProxyMode::Nftables,
        KubeProxyMode::Iptables,
        KubeProxyMode::Iptables,
        KubeProxyMode::None,
        KubeProxyMode::Nftables,
    ] {
        cluster.set_kube_proxy(mode)?;
        served.wait_for_more()?;
    }
    served.end(&scene)?;
    scene.delete_policy()?;
    Ok(())
}

/// The same between a policy that comes first, for a destination that nobody asks, and one that comes after, for
/// all of the node network: it has what the walk-through's policy leaves, and nothing else.
fn beside_others(kubectl: &Kubectl) -> Result<(), Failed> {
    companion(kubectl, &NOBODY, COMES_FIRST)?;
    walk::expect(kubectl, "beside a policy for another destination", [None, None])?;
    companion(kubectl, &OUTSIDE, COMES_AFTER)?;
    let of = |node: NodeSpec| [node.v4.to_string(), node.v6.to_string()];
    let ([low_v4, low_v6], [v4, v6]) = (of(WORKER), of(CONTROL_PLANE));
    let low = [Some(low_v4.as_str()), Some(low_v6.as_str())];
    walk::expect(kubectl, "the policy that comes after, alone", low)?;
    kubectl.apply(walk::POLICY)?;
    walk::expect(kubectl, "the IPv4 policy before it", [Some(&v4), Some(&low_v6)])?;
    kubectl.apply(walk::POLICY_DUAL)?;
    walk::expect(kubectl, "the dual-stack policy", [Some(&v4), Some(&v6)])?;
    walk::remove_policy(kubectl)?;
    walk::expect(kubectl, "the policy that comes after takes over", low)?;
    kubectl.run(["delete", "egressnatpolicy", COMES_AFTER.name])?;
    walk::expect(kubectl, "each with its own node's address again", [None, None])?;
    Ok(())
}
