//! What the scenarios share: a cluster with the chart and no policy, an egress address that nothing else
//! sends with, pods, and what the echo server outside sees of them.

use std::{thread, time::Duration};

use egressnat_e2e::{
    cluster::Cluster,
    error::{Context, Error, Result},
    kubectl::Kubectl,
    netns::Netns,
    site::{ECHO, NODES, NodeSpec},
    wait,
};
use serde_json::{Value, json};

use crate::pod::{Pod, pods};

/// The gateway of the scenarios.
pub const GATEWAY: NodeSpec = NODES[2];
/// Any other node that is not the control plane's.
pub const WORKER: NodeSpec = NODES[1];
/// Secondary addresses of [`GATEWAY`]: without a policy nothing is ever sent with them.
pub const EGRESS: [&str; 2] = ["172.18.0.40", "fd00:172:18::40"];
/// The node network, on which the echo server is.
pub const OUTSIDE: [&str; 2] = ["172.18.0.0/16", "fd00:172:18::/64"];
/// A second pair of addresses for the echo server.
pub const ELSEWHERE: [&str; 2] = ["172.18.0.6", "fd00:172:18::6"];
/// The label by which the scenarios' policy selects pods.
pub const CHOSEN: &str = "egress=chosen";
/// The name of the scenarios' policy.
pub const POLICY: &str = "scenario";

/// Addresses of the node network that are nobody's, and that nobody asks.
pub const NOBODY: [&str; 2] = ["172.18.0.99/32", "fd00:172:18::99/128"];
/// Comes before any other policy.
pub const COMES_FIRST: Companion = Companion {
    name: "comes-first",
    priority: 200,
    gateway: GATEWAY,
};
/// Comes after any other policy.
pub const COMES_AFTER: Companion = Companion {
    name: "comes-after",
    priority: 50,
    gateway: WORKER,
};

/// How long a change may take to show outside.
pub const DEADLINE: Duration = Duration::from_secs(30);
const PEERS: &str = include_str!("../../manifests/peers.yaml");

/// What the outside sees of a pod by IPv4 and by IPv6: an address, or no packet at all.
pub type Seen = [Option<String>; 2];

/// The cluster with the chart installed, and nothing of an earlier scenario.
pub struct Scene<'a> {
    pub cluster: &'a Cluster,
    pub kubectl: &'a Kubectl,
}

impl<'a> Scene<'a> {
    pub fn new(cluster: &'a Cluster) -> Result<Self> {
        let kubectl = cluster.kubectl();
        let scene = Self { cluster, kubectl };
        cluster.start_echo()?;
        scene.install_where_missing()?;
        kubectl.run(["delete", "egressnatpolicies", "--all"])?;
        kubectl.apply(PEERS)?;
        for label in ["egress-", "team-", "tier-"] {
            kubectl.run(["label", "namespace", "other", label])?;
            kubectl.run(["-n", "default", "label", "pod", "--all", label])?;
        }
        scene.give(GATEWAY, EGRESS)?;
        for workload in ["daemonset/peer", "daemonset/node-peer"] {
            kubectl.run(["-n", "other", "rollout", "status", workload, "--timeout=60s"])?;
        }
        Ok(scene)
    }

    /// The same, between two other policies for all pods of `default` that change nothing of what is asked.
    pub fn beside_others(cluster: &'a Cluster) -> Result<Self> {
        let scene = Self::new(cluster)?;
        for other in [COMES_FIRST, COMES_AFTER] {
            companion(scene.kubectl, &NOBODY, other)?;
        }
        Ok(scene)
    }

    /// Applies the scenarios' policy, with these fields instead of [`spec`]'s, and waits until every node
    /// concerned has it.
    pub fn apply_policy(&self, fields: Value) -> Result<()> {
        apply(self.kubectl, &policy(fields))
    }

    pub fn delete_policy(&self) -> Result<()> {
        self.kubectl.run(["delete", "egressnatpolicy", POLICY])?;
        Ok(())
    }

    /// The net-tshoot pods, one on each node, in the order of [`NODES`].
    pub fn tshoot(&self) -> Result<[Pod; 3]> {
        self.one_per_node("default", "name=net-tshoot")
    }

    /// The pods of the other namespace, likewise.
    pub fn peers(&self) -> Result<[Pod; 3]> {
        self.one_per_node("other", "name=peer")
    }

    /// Sets (`KEY=VALUE`) or removes (`KEY-`) a label of a pod.
    pub fn label(&self, pod: &Pod, label: &str) -> Result<()> {
        let arguments = ["-n", &pod.namespace, "label", "pod", &pod.name, label];
        self.kubectl.run(arguments)?;
        Ok(())
    }

    /// Waits until the echo server sees every one of these pods as it should, all in one look.
    pub fn expect(&self, what: &str, expected: &[(&Pod, Seen)]) -> Result<()> {
        wait::until(what, DEADLINE, || {
            let wrong: Vec<String> = thread::scope(|scope| {
                let looks: Vec<_> = expected
                    .iter()
                    .map(|(pod, wanted)| scope.spawn(move || (pod.seen(self.kubectl), *pod, wanted)))
                    .collect();
                let seen = looks.into_iter().map(|look| look.join().expect("no panic"));
                seen.filter(|(seen, _, wanted)| seen != *wanted)
                    .map(|(seen, pod, wanted)| format!("{pod} is seen as {seen:?}, not {wanted:?}"))
                    .collect()
            });
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        })
    }

    /// Gives the echo server [`ELSEWHERE`].
    pub fn serve_elsewhere(&self) -> Result<()> {
        let [v4, v6] = ELSEWHERE;
        Netns::open(&self.cluster.site().netns("echo"))?.ip(&format!(
            "addr replace {v4}/16 dev eth0\naddr replace {v6}/64 dev eth0 nodad"
        ))
    }

    /// Waits until the echo server's second addresses see the pods so.
    pub fn expect_elsewhere(&self, what: &str, expected: &[(&Pod, Seen)]) -> Result<()> {
        let [v4, v6] = ELSEWHERE;
        let urls = [format!("http://{v4}/"), format!("http://[{v6}]/")];
        wait::until(what, DEADLINE, || {
            for (pod, wanted) in expected {
                let seen = pod.ask(self.kubectl, &urls).map_err(|error| error.to_string())?;
                if seen != *wanted {
                    return Err(format!("{pod} is seen elsewhere as {seen:?}, not {wanted:?}"));
                }
            }
            Ok(())
        })
    }

    /// Gives a node a pair of addresses. Deprecated is what keeps the CNI's masquerade from choosing the IPv6
    /// address; IPv4's is secondary.
    pub fn give(&self, node: NodeSpec, [v4, v6]: [&str; 2]) -> Result<()> {
        self.cluster.node(node.name)?.netns()?.ip(&format!(
            "addr replace {v4}/16 dev eth0\naddr replace {v6}/64 dev eth0 nodad preferred_lft 0"
        ))
    }

    /// Takes a pair of addresses from a node that has them.
    pub fn take(&self, node: NodeSpec, [v4, v6]: [&str; 2]) -> Result<()> {
        self.cluster
            .node(node.name)?
            .netns()?
            .ip(&format!("addr del {v4}/16 dev eth0\naddr del {v6}/64 dev eth0"))
    }

    /// A policy as the API server shows it.
    pub fn shown(&self, policy: &str) -> Result<Value> {
        let text = self
            .kubectl
            .run(["get", "egressnatpolicy", policy, "-o", "json"])?;
        serde_json::from_str(&text).context(|| "read the policy".into())
    }

    fn one_per_node(&self, namespace: &str, label: &str) -> Result<[Pod; 3]> {
        let pods = pods(self.kubectl, namespace, label)?;
        let of = |node: NodeSpec| {
            let pod = pods.iter().find(|pod| pod.node == node).cloned();
            pod.ok_or_else(|| Error::State(format!("no {label} on {}", node.name)))
        };
        let [first, second, third] = NODES.map(of);
        Ok([first?, second?, third?])
    }

    fn install_where_missing(&self) -> Result<()> {
        let workloads = ["deployment/egressnat-operator", "daemonset/egressnat-agent"];
        let rolled_out = |workload: &&str| {
            let status = [
                "-n",
                "egressnat-system",
                "rollout",
                "status",
                workload,
                "--timeout=60s",
            ];
            self.kubectl.run(status).is_ok()
        };
        if workloads.iter().all(rolled_out) {
            return Ok(());
        }
        self.cluster.install_chart()
    }
}

/// The scenarios' policy: pods of `default` with the label [`CHOSEN`] leave to the node network with
/// [`EGRESS`].
pub fn policy(fields: Value) -> Value {
    let mut spec = json!({
        "selectors": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "podSelector": {"matchLabels": {"egress": "chosen"}},
        }],
        "destinationCIDRs": OUTSIDE,
        "egressSourceIPs": EGRESS,
    });
    for (name, value) in fields.as_object().into_iter().flatten() {
        spec[name] = value.clone();
    }
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": POLICY},
        "spec": spec,
    })
}

/// A policy for all pods of `default`, with its gateway's own addresses.
pub struct Companion {
    pub name: &'static str,
    pub priority: i32,
    pub gateway: NodeSpec,
}

/// Applies a companion for these destinations, and waits until every node concerned has it.
pub fn companion(kubectl: &Kubectl, destinations: &[&str], policy: Companion) -> Result<()> {
    let Companion {
        name,
        priority,
        gateway,
    } = policy;
    let manifest = json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": name},
        "spec": {
            "priority": priority,
            "selectors": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}],
            "destinationCIDRs": destinations,
            "egressGateway": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": gateway.name}}},
        },
    });
    apply(kubectl, &manifest)
}

/// Applies a policy, and waits until every node concerned has it.
pub fn apply(kubectl: &Kubectl, policy: &Value) -> Result<()> {
    kubectl.apply(&policy.to_string())?;
    let name = policy["metadata"]["name"].as_str().unwrap_or_default();
    let name = format!("egressnatpolicy/{name}");
    kubectl.run(["wait", "--for=condition=Programmed", "--timeout=30s", &name])?;
    Ok(())
}

/// A pair of addresses as destinations of their own.
pub fn hosts([v4, v6]: [&str; 2]) -> Value {
    json!([format!("{v4}/32"), format!("{v6}/128")])
}

/// The condition of this type in an object's status; null where there is none.
pub fn condition(object: &Value, kind: &str) -> Value {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.find(|condition| condition["type"] == kind);
    found.cloned().unwrap_or_default()
}

/// Seen with the policy's addresses.
pub fn egress() -> Seen {
    EGRESS.map(|address| Some(address.to_owned()))
}

/// Seen with the addresses of the pod's node.
pub fn own(pod: &Pod) -> Seen {
    of(pod.node)
}

/// Seen with the addresses of a node.
pub fn of(node: NodeSpec) -> Seen {
    [Some(node.v4.to_string()), Some(node.v6.to_string())]
}

/// The echo server's addresses as URLs.
pub fn echo_urls() -> [String; 2] {
    [format!("http://{}/", ECHO.0), format!("http://[{}]/", ECHO.1)]
}
