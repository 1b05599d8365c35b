//! What a node needs to let pods start only when it knows them, and to tell those that are gone from those that no
//! policy selects any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use egressnat_crds::plan::Gate;

use super::share::Share;
use crate::world::Pod;

/// The gate of a node with these pods that have a network of their own, in order of their uids; `gated` says of each
/// namespace that is known whether any policy may select pods of it. Of pods whose namespace is not known yet, nothing
/// is said.
pub fn of_node(open: bool, gated: &BTreeMap<String, bool>, share: &Share, pods: &[Arc<Pod>]) -> Gate {
    let captured: BTreeSet<&str> = share.captured().map(|selected| &*selected.pod.uid).collect();
    let is_gated = |pod: &Pod| gated.get(&*pod.namespace).copied();
    let unselected = pods
        .iter()
        .filter(|pod| is_gated(pod) == Some(true) && !captured.contains(&*pod.uid));
    let free: BTreeSet<&str> = pods
        .iter()
        .filter(|pod| is_gated(pod) == Some(false))
        .map(|pod| &*pod.namespace)
        .collect();
    // At an open gate, nobody asks for these.
    let namespaces = gated.iter().filter(|(_, gated)| **gated && !open);
    Gate {
        open,
        namespaces: namespaces.map(|(name, _)| name.clone()).collect(),
        unselected: unselected.map(|pod| pod.uid.to_string()).collect(),
        free: free.into_iter().map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use egressnat_crds::plan::Gate;

    use crate::difference::Difference;
    use crate::plan::{Planner, plan};
    use crate::testing;

    const OBJECTS: &str = r#"
kind: Node
metadata: {name: node, uid: node}
status: {addresses: [{type: InternalIP, address: 172.18.0.1}]}
---
kind: Node
metadata: {name: idle, uid: idle}
status: {addresses: [{type: InternalIP, address: 172.18.0.2}]}
---
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
kind: Namespace
metadata: {name: other, labels: {team: b}}
---
kind: Pod
metadata: {namespace: shop, name: selected, uid: selected, labels: {app: web}}
spec: {nodeName: node}
---
kind: Pod
metadata: {namespace: shop, name: beside, uid: beside}
spec: {nodeName: node}
---
kind: Pod
metadata: {namespace: shop, name: hosts, uid: hosts, labels: {app: web}}
spec: {nodeName: node, hostNetwork: true}
---
kind: Pod
metadata: {namespace: other, name: elsewhere, uid: elsewhere, labels: {app: web}}
spec: {nodeName: node}
---
kind: Pod
metadata: {namespace: news, name: first, uid: first, labels: {app: web}}
spec: {nodeName: node}
---
apiVersion: egressnat.io/v1alpha1
kind: EgressNATPolicy
metadata: {name: p, uid: p, generation: 1}
spec:
  egressSourceIP: 172.18.0.2
  selectors: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}]
"#;

    fn gates(start_gate: bool) -> [Option<Gate>; 2] {
        let mut world = testing::world(OBJECTS);
        world.config.start_gate = start_gate;
        let plans = plan(&world).plans;
        ["node", "idle"].map(|node| plans[node].gate.clone())
    }

    #[test]
    fn a_node_knows_where_policies_select_and_which_of_its_pods_they_do_not() {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        let gate = |unselected: &[&str], free: &[&str]| {
            Some(Gate {
                open: false,
                namespaces: vec!["shop".into()],
                unselected: texts(unselected),
                free: texts(free),
            })
        };
        assert_eq!(gates(true), [gate(&["beside"], &["other"]), gate(&[], &[])]);
    }

    #[test]
    fn of_pods_whose_namespace_is_news_nothing_is_said_until_it_is_known() {
        let mut world = testing::world(OBJECTS);
        world.config.start_gate = true;
        let mut planner = Planner::new(&world);
        let labels =
            testing::world("{kind: Namespace, metadata: {name: news, labels: {team: c}}}").namespaces;
        let labels = labels["news"].clone();
        world.namespaces.insert("news".into(), labels.clone());
        planner.note(Difference::Namespace("news", None, Some(&labels)));
        assert!(planner.catch_up(&world).plans.contains("node"));
        let free = planner.plan("node").unwrap().gate.unwrap().free;
        assert_eq!(free, ["news", "other"]);
    }

    #[test]
    fn an_open_gate_says_the_same_of_the_nodes_pods() {
        let open = |gate| Gate {
            open: true,
            namespaces: Vec::new(),
            ..gate
        };
        assert_eq!(gates(false), gates(true).map(|gate| gate.map(open)));
    }
}
