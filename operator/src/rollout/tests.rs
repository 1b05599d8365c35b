use std::collections::BTreeMap;

use egressnat_crds::EgressPlanSpec;
use egressnat_crds::plan::{EgressPlanStatus, PlanPolicy};
use egressnat_crds::policy::NoGateway;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

use crate::apply::PlanWrite;
use crate::backlog::Backlog;
use crate::store::{Change, Delta, Store};
use crate::{convert, testing};

const WORLD: &str = r#"
{kind: Node, metadata: {name: one, uid: one}, status: {addresses: [{type: InternalIP, address: 172.18.0.1}], conditions: [{type: Ready, status: "True"}]}}
---
{kind: Node, metadata: {name: two, uid: two}, status: {addresses: [{type: InternalIP, address: 172.18.0.2}], conditions: [{type: Ready, status: "True"}]}}
---
{kind: Node, metadata: {name: source, uid: source}, spec: {podCIDRs: [10.0.0.0/24]}, status: {addresses: [{type: InternalIP, address: 172.18.0.3}]}}
---
{kind: Pod, metadata: {namespace: default, name: p, uid: p}, spec: {nodeName: source}, status: {phase: Running, podIPs: [{ip: 10.0.0.5}]}}
"#;

/// An operator, and an API server that has what it wrote.
struct Cluster {
    store: Store,
    backlog: Backlog,
}

impl Cluster {
    /// With a policy that has this address.
    fn new(address: &str) -> Self {
        let mut store = Store::default();
        for document in WORLD.split("---") {
            let object: Value = serde_yaml_ng::from_str(document).unwrap();
            store.apply(convert::change(object).unwrap().unwrap());
        }
        let mut cluster = Self {
            backlog: Backlog::new(store.world()),
            store,
        };
        cluster.policy("policy", "uid", address);
        cluster
    }

    fn apply(&mut self, change: Change) {
        let backlog = &mut self.backlog;
        self.store
            .apply_noting(change, |difference| backlog.note(difference));
    }

    fn policy(&mut self, name: &str, uid: &str, address: &str) {
        let policy = format!(
            "{{apiVersion: egressnat.io/v1alpha1, kind: EgressNATPolicy, metadata: {{name: {name}, uid: {uid}}}, \
              spec: {{selectors: [{{podSelector: {{}}}}], egressSourceIP: {address}, noGateway: NodeIP}}}}"
        );
        let policy = testing::world(&policy).policies.remove(name).unwrap();
        self.apply(Change::Policies(Delta::Set(name.into(), policy)));
        self.write();
    }

    /// The operator writes what there is to write, and so often as there is. How many plans.
    fn write(&mut self) -> usize {
        let mut written = 0;
        loop {
            self.backlog.catch_up(self.store.world());
            let due = self.backlog.waves().concat();
            if due.is_empty() {
                return written;
            }
            for node in due {
                if let Some(PlanWrite::Apply { owner, spec, .. }) =
                    self.backlog.write(&node, self.store.world())
                {
                    let mut plan = self.store.world().plans.get(&node).cloned().unwrap_or_default();
                    plan.owner = Some(owner);
                    plan.generation += 1;
                    plan.spec = *spec;
                    self.apply(Change::Plans(Delta::Set(node, plan)));
                    written += 1;
                }
            }
        }
    }

    /// The agents of these nodes report their plans, and the operator writes what follows. How many plans.
    fn report(&mut self, nodes: &[&str]) -> usize {
        for node in nodes {
            let mut plan = self.store.world().plans[*node].clone();
            plan.status = EgressPlanStatus {
                observed_generation: Some(plan.generation),
                conditions: vec![Condition {
                    last_transition_time: Time(testing::time(0)),
                    message: String::new(),
                    observed_generation: None,
                    reason: "Programmed".into(),
                    status: "True".into(),
                    type_: "Ready".into(),
                }],
                ..EgressPlanStatus::default()
            };
            self.apply(Change::Plans(Delta::Set((*node).into(), plan)));
        }
        self.write()
    }

    /// The operator is killed, and another begins.
    fn restart(&mut self) {
        self.backlog = Backlog::new(self.store.world());
    }

    fn spec(&self, node: &str) -> &EgressPlanSpec {
        &self.store.world().plans[node].spec
    }

    fn part(&self, node: &str) -> Option<&PlanPolicy> {
        self.spec(node).policies.first()
    }

    /// Where the source sends.
    fn way(&self) -> Option<&str> {
        self.part("source")?.source.as_ref()?.gateway.as_deref()
    }

    fn is_gateway(&self, node: &str) -> bool {
        let takes = self.spec(node).peers.iter().any(|peer| !peer.ranges.is_empty());
        self.part(node).is_some_and(|part| part.gateway.is_some()) && takes
    }
}

#[test]
fn a_source_waits_for_its_gateways_word_and_drops_meanwhile() {
    let mut cluster = Cluster::new("172.18.0.1");
    assert!(cluster.is_gateway("one"));
    let role = cluster.part("source").unwrap().source.clone().unwrap();
    assert_eq!((role.gateway, role.no_gateway), (None, NoGateway::Drop));
    assert_eq!(cluster.spec("source").pods.len(), 1, "the pod is captured");
    assert_eq!(
        cluster.report(&["source", "two"]),
        0,
        "others' words change nothing"
    );
    assert_eq!(cluster.report(&["one"]), 1);
    assert_eq!(cluster.way(), Some("one"));
    let role = cluster.part("source").unwrap().source.clone().unwrap();
    assert_eq!(role.no_gateway, NoGateway::NodeIP);
}

#[test]
fn a_gateway_goes_when_its_last_source_has_gone() {
    for restarts in [false, true] {
        let mut cluster = Cluster::new("172.18.0.1");
        cluster.report(&["one", "two"]);
        cluster.report(&["source"]);
        let then = |cluster: &mut Cluster| {
            if restarts {
                cluster.restart();
                assert_eq!(cluster.write(), 0);
            }
        };
        cluster.policy("policy", "uid", "172.18.0.2");
        then(&mut cluster);
        assert_eq!(cluster.way(), Some("one"), "until the other has reported");
        assert!(cluster.is_gateway("one") && cluster.is_gateway("two"));
        cluster.report(&["two"]);
        then(&mut cluster);
        assert_eq!(cluster.way(), Some("two"));
        assert!(cluster.is_gateway("one"), "until the source has reported");
        cluster.report(&["one", "two"]);
        then(&mut cluster);
        assert!(cluster.is_gateway("one"));
        cluster.report(&["source"]);
        assert!(!cluster.is_gateway("one"));
    }
}

#[test]
fn an_id_rests_until_every_node_has_let_go_of_it() {
    for restarts in [false, true] {
        let mut cluster = Cluster::new("172.18.0.1");
        cluster.report(&["one", "two"]);
        cluster.report(&["source"]);
        let id = cluster.part("source").unwrap().id;
        cluster.apply(Change::Policies(Delta::Gone("policy".into())));
        cluster.write();
        assert_eq!(cluster.spec("source").retired[0].id, id);
        assert!(cluster.is_gateway("one"), "the source may still send");
        if restarts {
            cluster.restart();
        }
        // One that looks for its id where the other did.
        cluster.policy("next", "uid", "172.18.0.1");
        let next = cluster
            .backlog
            .planner()
            .policies(["next"], cluster.store.world());
        assert_ne!(next["next"].id, Some(id));
        cluster.apply(Change::Policies(Delta::Gone("next".into())));
        for _ in 0..4 {
            cluster.write();
            cluster.report(&["source", "one", "two"]);
        }
        let idle: BTreeMap<_, _> = ["source", "one", "two"].map(|n| (n, cluster.spec(n))).into();
        assert!(
            idle.values()
                .all(|spec| spec.retired.is_empty() && spec.policies.is_empty()),
            "{idle:?}"
        );
        cluster.policy("last", "uid", "172.18.0.1");
        assert_eq!(cluster.part("source").unwrap().id, id, "nobody uses it any more");
    }
}

#[test]
fn a_node_that_is_cut_off_keeps_nothing_but_its_own_gateway() {
    let mut cluster = Cluster::new("172.18.0.1");
    cluster.report(&["one", "two"]);
    cluster.report(&["source"]);
    cluster.apply(Change::Policies(Delta::Gone("policy".into())));
    cluster.write();
    cluster.report(&["one", "two"]);
    assert!(cluster.is_gateway("one"), "the source has not reported");
    cluster.policy("other", "other", "172.18.0.2");
    cluster.report(&["two"]);
    assert_eq!(cluster.way(), Some("two"), "others go on");
    cluster.apply(Change::Nodes(Delta::Gone("source".into())));
    cluster.apply(Change::Plans(Delta::Gone("source".into())));
    cluster.write();
    assert!(!cluster.is_gateway("one"), "a node that is gone does not count");
}
