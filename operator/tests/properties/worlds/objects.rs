//! The objects of the API server that seeds stand for.

use egressnat_operator::convert;
use egressnat_operator::store::{Change, Delta};
use serde_json::{Value, json};

use super::{
    Families, GatewaySeed, NAMED, NodeSeed, PodSeed, PolicySeed, cidrs, namespace, node_name, read, time,
};

impl NodeSeed {
    pub(super) fn object(&self) -> Value {
        let n = self.number;
        let ranges = match self.ranges {
            true => json!([format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")]),
            false => json!([]),
        };
        let addresses = match self.addresses {
            true => json!([
                {"type": "InternalIP", "address": v4_of(n)},
                {"type": "InternalIP", "address": v6_of(n)},
            ]),
            false => json!([]),
        };
        let ready = if self.ready { "True" } else { "False" };
        json!({
            "metadata": {"name": self.name(), "uid": self.name(), "labels": self.labels()},
            "spec": {"podCIDRs": ranges},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    fn labels(&self) -> Value {
        let mut labels = json!({"name": self.name()});
        if let Some(zone) = self.zone() {
            labels["topology.kubernetes.io/zone"] = json!(zone);
        }
        labels
    }
}

impl PodSeed {
    pub(super) fn object(&self) -> Value {
        let ips: Vec<Value> = self.ips().iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "metadata": {
                "namespace": namespace(self.namespace),
                "name": self.uid(),
                "uid": self.uid(),
                "creationTimestamp": time(self.created),
                "deletionTimestamp": self.deleting.then(|| time(100)),
                "labels": {"app": app(self.app)},
            },
            "spec": {"nodeName": self.node(), "hostNetwork": self.host_network},
            "status": {"phase": self.phase, "podIPs": ips},
        })
    }
}

impl PolicySeed {
    pub(super) fn object(&self) -> Value {
        let entries: Vec<Value> = self.entries.iter().map(entry_object).collect();
        let mut spec = json!({
            "priority": self.priority,
            "selectors": entries,
            "destinationCIDRs": cidrs(&self.destinations),
            "excludedCIDRs": cidrs(&self.exclusions),
            "noGateway": if self.node_ip { "NodeIP" } else { "Drop" },
        });
        let (field, value) = match &self.gateway {
            GatewaySeed::V4(n) => ("egressSourceIP", json!(v4_of(*n))),
            GatewaySeed::V6(n) => ("egressSourceIP", json!(v6_of(*n))),
            GatewaySeed::Pairs(nodes, families) => {
                let (v4, v6) = (nodes.iter().map(|n| v4_of(*n)), nodes.iter().map(|n| v6_of(*n)));
                let addresses: Vec<String> = match families {
                    Families::V4 => v4.collect(),
                    Families::V6 => v6.collect(),
                    Families::Both => v4.chain(v6).collect(),
                };
                ("egressSourceIPs", json!(addresses))
            }
            GatewaySeed::Several(entries, affinity) => {
                spec["zoneAffinity"] = json!(affinity);
                let entries: Vec<Value> = entries.iter().map(|n| entry_of(*n)).collect();
                ("egressGateways", json!(entries))
            }
            GatewaySeed::Chosen => ("egressGateway", json!({"nodeSelector": {}})),
            GatewaySeed::Unheld => ("egressSourceIP", json!("192.0.2.99")),
        };
        spec[field] = value;
        if let Some(ports) = self.ports {
            spec["sourcePorts"] = json!(ports);
        }
        json!({
            "apiVersion": "egressnat.io/v1alpha1",
            "kind": "EgressNATPolicy",
            "metadata": {
                "name": self.name(),
                "uid": format!("{}-{}-{}", self.name(), self.priority, self.entries.len()),
                "generation": 1,
                "creationTimestamp": time(self.created),
            },
            "spec": spec,
        })
    }
}

/// Namespaces that lose their label, or have another's.
pub fn namespace_changes() -> impl Iterator<Item = Change> {
    let labels = [
        json!({}),
        json!({"name": namespace(0)}),
        json!({"name": namespace(1)}),
    ];
    let pairs = (0..2).flat_map(move |n| labels.clone().map(|labels| (n, labels)));
    let labelled = pairs.map(|(n, labels)| {
        let object = json!({"metadata": {"name": namespace(n), "labels": labels}});
        Change::Namespaces(Delta::Set(namespace(n), convert::namespace(read(object))))
    });
    labelled.chain((0..2).map(|n| Change::Namespaces(Delta::Gone(namespace(n)))))
}

/// An entry of `egressGateways`: one of four nodes, any node, or the node with an address.
fn entry_of(n: usize) -> Value {
    match n {
        NAMED => json!({"nodeSelector": {}, "egressIP": v4_of(0)}),
        4 => json!({"nodeSelector": {}}),
        n => json!({"nodeSelector": {"matchLabels": {"name": node_name(n)}}}),
    }
}

fn entry_object(
    (namespace_wanted, app_wanted, node_wanted): &(Option<usize>, Option<usize>, Option<usize>),
) -> Value {
    let mut entry = json!({});
    if let Some(n) = namespace_wanted {
        entry["namespaceSelector"] = json!({"matchLabels": {"name": namespace(*n)}});
    }
    if let Some(n) = app_wanted {
        entry["podSelector"] =
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": [app(*n)]}]});
    }
    if let Some(n) = node_wanted {
        entry["nodeSelector"] = json!({"matchLabels": {"name": node_name(*n)}});
    }
    entry
}

fn app(n: usize) -> String {
    format!("app-{n}")
}

fn v4_of(n: usize) -> String {
    format!("172.18.0.{}", n + 1)
}

fn v6_of(n: usize) -> String {
    format!("fc00::{}", n + 1)
}
