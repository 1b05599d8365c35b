//! flannel, as a cluster's network.

use crate::{error::Result, kubectl::Kubectl};

const MANIFEST: &str = include_str!("../manifests/flannel.yaml");
const NAMESPACE: [&str; 2] = ["-n", "kube-flannel"];

/// The CNI configuration that flannel copies to each node.
pub const CONFIGURATION: &str = "/etc/cni/net.d/10-flannel.conflist";

/// By what flannel masquerades and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// The default.
    Iptables,
    /// Tables of its own.
    Nftables,
}

/// Installs flannel, or changes its rules; running pods of it go on as they are until [`restart`].
///
/// # Errors
/// When the API server refuses.
pub fn apply(kubectl: &Kubectl, rules: Rules) -> Result<()> {
    let nftables = |on: bool| format!("\"EnableNFTables\": {on}");
    let manifest = MANIFEST.replace(&nftables(false), &nftables(rules == Rules::Nftables));
    kubectl.apply(&manifest)?;
    Ok(())
}

/// Ends flannel on every node and waits for its new pods, which copy their configuration again.
///
/// # Errors
/// When they do not come up within a minute.
pub fn restart(kubectl: &Kubectl) -> Result<()> {
    const PODS: &str = "daemonset/kube-flannel-ds";
    let status = ["rollout", "status", PODS, "--timeout=60s"];
    kubectl.run(NAMESPACE.into_iter().chain(["rollout", "restart", PODS]))?;
    kubectl.run(NAMESPACE.into_iter().chain(status))?;
    Ok(())
}

/// The CNI configuration, as flannel writes it.
#[must_use]
pub fn configuration() -> String {
    let text = MANIFEST.split("  cni-conf.json: |\n").nth(1).unwrap_or_default();
    let lines = text.lines().take_while(|line| line.starts_with("    "));
    lines
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect()
}
