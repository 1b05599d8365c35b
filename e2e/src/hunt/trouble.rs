//! Killing, holding and upsetting what runs on the nodes.

use std::{fs, process::Command, thread, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::change::Trouble;
use crate::{
    cluster::Cluster,
    error::{Context, Result},
    kube_proxy::{self, KubeProxyMode},
    node::Node,
};

const NAMESPACE: &str = "egressnat-system";
const AGENT: &str = "egressnat-agent";
const OPERATOR: &str = "egressnat-operator";
/// For how long an agent is held: less than the kubelet needs to take it for dead.
const HELD: Duration = Duration::from_secs(3);
/// Where the CNI remembers which address it gave last.
const LAST_ADDRESSES: [&str; 2] = ["0", "1"];

/// Makes it.
///
/// # Errors
/// When the API server, a node or the kernel refuses.
pub fn make(cluster: &Cluster, trouble: Trouble) -> Result<()> {
    let nodes = cluster.nodes();
    match trouble {
        Trouble::AgentKilled(node) => match agent_of(cluster, &nodes[node])? {
            Some(agent) => kill_pod(cluster, &agent, AGENT),
            None => Ok(()),
        },
        Trouble::AgentReplaced(node) => match agent_of(cluster, &nodes[node])? {
            Some(agent) => delete(cluster, &agent.name, &["--wait=false"]),
            None => Ok(()),
        },
        Trouble::AgentHeld(node) => match agent_of(cluster, &nodes[node])? {
            Some(agent) => hold(cluster, &agent),
            None => Ok(()),
        },
        Trouble::Operator => kill_leader(cluster),
        Trouble::KubeProxy(node) => restart_kube_proxy(cluster, &nodes[node]),
        Trouble::Conntrack(node) => forget_connections(&nodes[node]),
        Trouble::PodAddresses(node) => forget_last_addresses(&nodes[node]),
    }
}

/// A pod of the product.
struct ProductPod {
    name: String,
    uid: String,
    restarts: u32,
}

/// The agent's pod on a node. None, where the last one was killed and the next is not there yet.
fn agent_of(cluster: &Cluster, node: &Node) -> Result<Option<ProductPod>> {
    let field = format!("--field-selector=spec.nodeName={}", node.spec().name);
    Ok(pods(cluster, "agent", &[&field])?.pop())
}

fn pods(cluster: &Cluster, component: &str, more: &[&str]) -> Result<Vec<ProductPod>> {
    let label = format!("app.kubernetes.io/component={component}");
    let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} \
                {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let query = ["-n", NAMESPACE, "get", "pods", "-l", &label, "-o", path];
    let listed = cluster.kubectl().run([&query, more].concat())?;
    let pod = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let (name, uid) = (words.next()?, words.next()?);
        let restarts = words.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(ProductPod { name, uid, restarts })
    };
    Ok(listed.lines().filter_map(pod).collect())
}

/// By SIGKILL, so that the container is started again in its pod. The kubelet waits longer each time before it
/// does that, so a pod that was killed before is replaced instead, and with it the kubelet's memory.
fn kill_pod(cluster: &Cluster, pod: &ProductPod, program: &str) -> Result<()> {
    if pod.restarts > 0 {
        return delete(cluster, &pod.name, &["--force", "--grace-period=0"]);
    }
    signal(&processes(cluster, &pod.uid, program)?, Signal::SIGKILL)
}

fn delete(cluster: &Cluster, name: &str, manner: &[&str]) -> Result<()> {
    let delete = ["-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found"];
    cluster.kubectl().run([&delete, manner].concat())?;
    Ok(())
}

/// Its process is told to go on after a while, wherever the hunt is by then.
fn hold(cluster: &Cluster, agent: &ProductPod) -> Result<()> {
    let held = processes(cluster, &agent.uid, AGENT)?;
    signal(&held, Signal::SIGSTOP)?;
    thread::spawn(move || {
        thread::sleep(HELD);
        signal(&held, Signal::SIGCONT)
    });
    Ok(())
}

/// The operator that holds the Lease: another one has to take it.
fn kill_leader(cluster: &Cluster) -> Result<()> {
    let path = "jsonpath={.spec.holderIdentity}";
    let leader = cluster
        .kubectl()
        .run(["-n", NAMESPACE, "get", "lease", OPERATOR, "-o", path])?;
    let pods = pods(cluster, "operator", &[])?;
    match pods.iter().find(|pod| pod.name == leader.trim()) {
        Some(pod) => kill_pod(cluster, pod, OPERATOR),
        // It was killed last time, and nobody has taken its Lease yet.
        None => Ok(()),
    }
}

/// What has ended by then needs none.
fn signal(processes: &[Pid], signal: Signal) -> Result<()> {
    for pid in processes {
        match kill(*pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            refused => refused.context(|| format!("send {signal} to process {pid}"))?,
        }
    }
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

/// All of them: those of its pods, of its own to the API server, and of Services.
fn forget_connections(node: &Node) -> Result<()> {
    node.netns()?.output(Command::new("conntrack").arg("-F"))?;
    Ok(())
}

/// host-local goes round its range, and so gives no address twice within 250 pods, unless it forgets where it was.
fn forget_last_addresses(node: &Node) -> Result<()> {
    let files = LAST_ADDRESSES.map(|range| format!("/var/lib/cni/networks/lab/last_reserved_ip.{range}"));
    node.output(Command::new("rm").arg("-f").args(files))?;
    Ok(())
}

fn restart_kube_proxy(cluster: &Cluster, node: &Node) -> Result<()> {
    kube_proxy::set(cluster.site(), node, KubeProxyMode::Nftables)?;
    kube_proxy::wait_healthy(cluster.site(), node)
}
