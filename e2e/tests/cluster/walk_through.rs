//! The README's walk-through, judged by what the external echo server sees: a pod on the gateway node and pods
//! off it, IPv4 and IPv6, however Services work on the nodes.

use egressnat_e2e::{cluster::Cluster, kube_proxy::KubeProxyMode, walk};
use libtest_mimic::Failed;

use crate::Test;

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
];

fn walk_through(cluster: &Cluster, mode: KubeProxyMode) -> Result<(), Failed> {
    cluster.set_kube_proxy(mode)?;
    cluster.start_echo()?;
    cluster.install_chart()?;
    walk::run(cluster.kubectl(), |_, _| {})?;
    Ok(())
}
