//! Killing and upsetting what runs on the nodes.

use std::{fs, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{change::Trouble, place::OUTSIDE};
use crate::{
    cluster::Cluster,
    error::{Context, Result},
    kube_proxy::{self, KubeProxyMode},
    node::Node,
};

const NAMESPACE: &str = "egressnat-system";

/// Makes it.
///
/// # Errors
/// When what is to be killed is not there, or the kernel refuses.
pub fn make(cluster: &Cluster, trouble: Trouble) -> Result<()> {
    let nodes = cluster.nodes();
    match trouble {
        Trouble::Agent(node) => kill_pod(
            cluster,
            "app.kubernetes.io/component=agent",
            Some(nodes[node].spec().name),
            "egressnat-agent",
        ),
        Trouble::Operator => kill_pod(
            cluster,
            "app.kubernetes.io/component=operator",
            None,
            "egressnat-operator",
        ),
        Trouble::KubeProxy(node) => restart_kube_proxy(cluster, &nodes[node]),
        Trouble::Conntrack(node) => forget_connections(&nodes[node]),
    }
}

/// By SIGKILL, so that the container is started again in its pod. The kubelet waits longer each time before it
/// does that, so a pod that was killed before is replaced instead, and with it the kubelet's memory.
fn kill_pod(cluster: &Cluster, label: &str, node: Option<&str>, program: &str) -> Result<()> {
    let field = node.map_or(String::new(), |node| {
        format!("--field-selector=spec.nodeName={node}")
    });
    let path = "jsonpath={range .items[*]}{.metadata.uid} {.metadata.name} \
                {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let mut query = vec!["-n", NAMESPACE, "get", "pods", "-l", label, "-o", path];
    query.extend(node.map(|_| field.as_str()));
    let listed = cluster.kubectl().run(query)?;
    // One that is on its way already, after it was killed last time, is none.
    let Some((uid, rest)) = listed.lines().next().and_then(|line| line.split_once(' ')) else {
        return Ok(());
    };
    let (name, restarts) = rest.split_once(' ').unwrap_or((rest, "0"));
    if restarts == "0" {
        return processes(cluster, uid, program)?
            .into_iter()
            .try_for_each(|pid| kill(pid, Signal::SIGKILL).context(|| format!("kill {program}")));
    }
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        name,
        "--force",
        "--grace-period=0",
    ];
    cluster.kubectl().run(delete)?;
    Ok(())
}

/// The processes of a pod that run a program: by their control group, which the pod's uid names. None, where the
/// pod has not begun.
fn processes(cluster: &Cluster, uid: &str, program: &str) -> Result<Vec<Pid>> {
    let own = format!("/{}/", cluster.site().cluster());
    let entries = fs::read_dir("/proc").context(|| "list processes".into())?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_its = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let group = read("cgroup");
        group.contains(&own) && group.contains(uid) && read("cmdline").contains(program)
    };
    Ok(pids.filter(is_its).map(Pid::from_raw).collect())
}

/// Those to the hosts outside: without its own to the API server, the operator would be deaf until its watches end.
fn forget_connections(node: &Node) -> Result<()> {
    let netns = node.netns()?;
    for host in OUTSIDE.iter().flatten() {
        // It fails where there is none.
        let _ = netns.output(Command::new("conntrack").args(["-D", "-d", &host.to_string()]));
    }
    Ok(())
}

fn restart_kube_proxy(cluster: &Cluster, node: &Node) -> Result<()> {
    kube_proxy::set(cluster.site(), node, KubeProxyMode::Nftables)?;
    kube_proxy::wait_healthy(cluster.site(), node)
}
