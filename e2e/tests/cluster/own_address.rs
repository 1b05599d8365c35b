//! Without a policy the outside sees each pod with its own node's address. It is where every other test of
//! the cluster starts from, and shows that the lab itself is sound.

use std::{collections::BTreeSet, process::Command};

use egressnat_e2e::{
    cluster::Cluster,
    kube_proxy::KubeProxyMode,
    site::{API_SERVICE, NODES},
    wait, walk,
};
use libtest_mimic::Failed;

use crate::{Test, scene::DEADLINE};

pub const TESTS: &[Test] = &[
    (
        "own_address::three_nodes_with_pods_of_both_families",
        three_nodes_with_pods_of_both_families,
    ),
    ("own_address::kube_proxy_nftables", |cluster| {
        seen_with_own_address(cluster, KubeProxyMode::Nftables)
    }),
    ("own_address::kube_proxy_iptables", |cluster| {
        seen_with_own_address(cluster, KubeProxyMode::Iptables)
    }),
    ("own_address::kube_proxy_none", |cluster| {
        seen_with_own_address(cluster, KubeProxyMode::None)
    }),
];

fn three_nodes_with_pods_of_both_families(cluster: &Cluster) -> Result<(), Failed> {
    for spec in NODES {
        let query =
            "{.status.conditions[?(@.type=='Ready')].status} {.status.addresses[*].address} {.spec.podCIDRs}";
        let node = cluster
            .kubectl()
            .run(["get", "node", spec.name, "-o", &format!("jsonpath={query}")])?;
        let (v4, v6) = spec.pod_ranges;
        assert_eq!(
            node,
            format!("True {} {} {} [\"{v4}\",\"{v6}\"]", spec.v4, spec.v6, spec.name)
        );
    }
    let query = "jsonpath={range .items[*]}{.spec.nodeName} {.status.podIPs[*].ip}{'\\n'}{end}";
    let pods = cluster.kubectl().run([
        "-n",
        "default",
        "get",
        "pod",
        "-l",
        "name=net-tshoot",
        "-o",
        query,
    ])?;
    let nodes: BTreeSet<&str> = pods.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(nodes, NODES.iter().map(|node| node.name).collect());
    for line in pods.lines() {
        let addresses: Vec<&str> = line.split(' ').skip(1).collect();
        assert!(
            matches!(addresses[..], [v4, v6] if v4.starts_with("10.244.") && v6.starts_with("fd00:10:244:")),
            "{line}"
        );
    }
    Ok(())
}

fn seen_with_own_address(cluster: &Cluster, mode: KubeProxyMode) -> Result<(), Failed> {
    cluster.start_echo()?;
    cluster.set_kube_proxy(mode)?;
    walk::expect(
        cluster.kubectl(),
        "each pod with its own node's address",
        [None, None],
    )?;
    expect_service_rules(cluster, mode)?;
    expect_services(cluster, mode != KubeProxyMode::None)
}

/// Each mode's own rules are there, and those of the others are not.
fn expect_service_rules(cluster: &Cluster, mode: KubeProxyMode) -> Result<(), Failed> {
    for node in cluster.nodes() {
        let rules = node
            .netns()?
            .output(Command::new("nft").args(["list", "ruleset"]))?;
        let of_nftables = rules.contains("table ip kube-proxy");
        let of_iptables = rules.contains("chain KUBE-SERVICES");
        assert_eq!(
            of_nftables,
            mode == KubeProxyMode::Nftables,
            "nftables rules on {}",
            node.spec().name
        );
        assert_eq!(
            of_iptables,
            mode == KubeProxyMode::Iptables,
            "iptables rules on {}",
            node.spec().name
        );
    }
    Ok(())
}

/// From a pod, the API server answers at its Service's address just when kube-proxy runs.
fn expect_services(cluster: &Cluster, reachable: bool) -> Result<(), Failed> {
    let pod = cluster.kubectl().run([
        "-n",
        "default",
        "get",
        "pod",
        "-l",
        "name=net-tshoot",
        "-o",
        "name",
    ])?;
    for pod in pod.lines() {
        // The API server's certificate is not known to the pod: that it answers at all is the point.
        let connect = [
            "-n",
            "default",
            "exec",
            pod,
            "--",
            "timeout",
            "2",
            "nc",
            API_SERVICE.0,
            "443",
            "-e",
            "true",
        ];
        let ask = || cluster.kubectl().run(connect);
        if reachable {
            // kube-proxy is healthy before the last of its rules is there.
            wait::until(
                &format!("an answer from {} to {pod}", API_SERVICE.0),
                DEADLINE,
                ask,
            )?;
        } else {
            let answer = ask();
            assert!(answer.is_err(), "{pod} -> {}: {answer:?}", API_SERVICE.0);
        }
    }
    Ok(())
}
