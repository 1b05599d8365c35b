//! A node's power: cut, and given again.

use crate::{
    cluster::Cluster,
    error::Result,
    kube_proxy::{self, KubeProxyMode},
    network,
    node::Node,
};

/// Cuts a worker's power: its processes are ended at once, its kernel state and all that it kept in memory are gone.
///
/// # Errors
/// When something does not end.
pub fn cut(cluster: &Cluster, node: &Node) -> Result<()> {
    let site = cluster.site();
    for service in [node.kubelet(), node.containerd(), kube_proxy::service(site, node)] {
        service.kill()?;
    }
    // What is left of its pods' groups would keep the next kubelet from its work: the kernel's, too, are gone.
    let pods = site.node_cgroup(node.spec());
    pods.kill()?;
    pods.remove()?;
    network::unplug(site, node.spec())
}

/// Boots a node whose power was cut: with the network that its machine configures, and what is on its disk.
///
/// # Errors
/// When a part does not come up.
pub fn restore(cluster: &Cluster, node: &Node, mode: KubeProxyMode) -> Result<()> {
    network::plug(cluster.site(), node.spec())?;
    node.start_containerd()?;
    node.start_kubelet()?;
    kube_proxy::set(cluster.site(), node, mode)
}
