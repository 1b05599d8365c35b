//! Random selectors and policies, of so few labels, ranges and addresses that everything meets.

use std::collections::BTreeMap;

use egressnat_e2e::topology::{Dual, on_segment};
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use crate::generate::{NODES, address_on_eth1, time};

/// Label keys with their values.
pub type Alphabet = &'static [(&'static str, &'static [&'static str])];

pub const POD_LABELS: Alphabet = &[("app", &["a", "b"]), ("tier", &["x", "y"])];
pub const NAMESPACE_LABELS: Alphabet = &[("team", &["a", "b"])];
pub const NODE_LABELS: Alphabet = &[("topology.kubernetes.io/zone", &["a", "b"]), ("egress", &["yes"])];

/// Ranges that contain one another, around the servers of the topology and at the ends of both families.
const CIDRS: [&str; 19] = [
    "0.0.0.0/0",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.241.0.0/16",
    "172.30.0.0/24",
    "172.30.0.96/28",
    "172.30.0.100/32",
    "198.51.100.0/24",
    "198.51.100.128/25",
    "198.51.100.100/32",
    "255.255.255.0/24",
    "::/0",
    "8000::/1",
    "fd00::/8",
    "fd00:172:30::/64",
    "fd00:172:30::100/128",
    "2001:db8::/32",
    "2001:db8:51::/48",
    "2001:db8:51::100/128",
];

/// Ranges of ports that overlap or do not. None is so small, or of the ports that clients choose, that the real kernel
/// would run out of it or be right by chance; the last one is refused.
const PORTS: [&str; 6] = [
    "20000-20999",
    "20500-21499",
    "22000-22999",
    "20000-20999",
    "1024-19999",
    "21000-20000",
];

/// Labels of an object: each key absent, or with one of its values.
pub fn labels(alphabet: Alphabet) -> BoxedStrategy<Map<String, Value>> {
    let pairs: Vec<_> = alphabet
        .iter()
        .map(|(key, values)| {
            proptest::option::weighted(0.7, select(*values)).prop_map(move |v| Some((*key, v?)))
        })
        .collect();
    let labels = |pairs: Vec<Option<(&str, &str)>>| {
        let pairs = pairs.into_iter().flatten();
        pairs.map(|(k, v)| (k.to_owned(), json!(v))).collect()
    };
    pairs.prop_map(labels).boxed()
}

/// Any selector, most of which can match something.
pub fn selector(alphabet: Alphabet) -> BoxedStrategy<Value> {
    let expressions = || vec(requirement(alphabet), 1..3);
    prop_oneof![
        3 => Just(json!({})),
        3 => labels(alphabet).prop_map(|l| json!({"matchLabels": l})),
        3 => expressions().prop_map(|e| json!({"matchExpressions": e})),
        1 => (labels(alphabet), expressions())
            .prop_map(|(l, e)| json!({"matchLabels": l, "matchExpressions": e})),
    ]
    .boxed()
}

fn requirement(alphabet: Alphabet) -> BoxedStrategy<Value> {
    let of_key = |(key, values): (&'static str, &'static [&'static str])| {
        let some = subsequence(values, 1..=values.len());
        prop_oneof![
            2 => (select(vec!["In", "NotIn"]), some)
                .prop_map(move |(op, v)| json!({"key": key, "operator": op, "values": v})),
            1 => select(vec!["Exists", "DoesNotExist"])
                .prop_map(move |op| json!({"key": key, "operator": op})),
        ]
    };
    select(alphabet).prop_flat_map(of_key).boxed()
}

/// What a policy is made of.
#[derive(Clone, Debug)]
pub struct PolicySeed {
    spec: Value,
    created: u32,
    /// The node that is the gateway now, where an earlier spec was accepted.
    current: Option<usize>,
}

impl PolicySeed {
    /// The policy of this number.
    pub fn object(&self, number: usize) -> Value {
        let name = format!("policy-{number}");
        let mut object = json!({
            "apiVersion": "egressnat.io/v1alpha1",
            "kind": "EgressNATPolicy",
            "metadata": {"name": name, "uid": name, "generation": 1, "creationTimestamp": time(self.created)},
            "spec": self.spec,
        });
        if let Some(node) = self.current {
            object["status"] = json!({"id": 100 + number, "gateways": [{"node": NODES[node]}]});
        }
        object
    }
}

prop_compose! {
    /// Any policy.
    pub fn policy()(
        spec in spec(),
        created in 0..3u32,
        current in proptest::option::weighted(0.3, 0..NODES.len()),
    ) -> PolicySeed {
        PolicySeed { spec, created, current }
    }
}

prop_compose! {
    fn spec()(
        priority in proptest::option::weighted(0.6, select(vec![50, 100, 200])),
        selectors in vec(entry(), 1..4),
        destinations in vec(cidr(), 0..4),
        exclusions in vec(cidr(), 0..3),
        gateway in gateway(),
        no_gateway in proptest::option::weighted(0.6, select(vec!["Drop", "NodeIP"])),
        ports in proptest::option::weighted(0.4, select(&PORTS[..])),
    ) -> Value {
        let mut spec = gateway;
        spec.insert("selectors".into(), json!(selectors));
        let mut give = |field: &str, value: Option<Value>| value.map(|v| spec.insert(field.into(), v));
        give("priority", priority.map(|p| json!(p)));
        give("destinationCIDRs", (!destinations.is_empty()).then(|| json!(destinations)));
        give("excludedCIDRs", (!exclusions.is_empty()).then(|| json!(exclusions)));
        give("noGateway", no_gateway.map(|n| json!(n)));
        give("sourcePorts", ports.map(|p| json!(p)));
        Value::Object(spec)
    }
}

prop_compose! {
    fn entry()(
        which in 1..8u8,
        pods in selector(POD_LABELS),
        namespaces in selector(NAMESPACE_LABELS),
        nodes in selector(NODE_LABELS),
    ) -> Value {
        let given = [(1, "podSelector", pods), (2, "namespaceSelector", namespaces), (4, "nodeSelector", nodes)];
        let given = given.into_iter().filter(|(bit, ..)| which & bit != 0);
        Value::Object(given.map(|(_, name, selector)| (name.to_owned(), selector)).collect())
    }
}

fn cidr() -> impl Strategy<Value = String> {
    let around = (select(&CIDRS[..]), 0..=128u8).prop_map(|(cidr, length)| {
        let address = cidr.parse::<IpNet>().unwrap().addr();
        let length = if address.is_ipv4() { length / 4 } else { length };
        IpNet::new(address, length).unwrap().trunc().to_string()
    });
    prop_oneof![3 => select(&CIDRS[..]).prop_map(str::to_owned), 1 => around]
}

/// The fields that say who the gateways are.
fn gateway() -> impl Strategy<Value = Map<String, Value>> {
    let apart = || (egress(), egress()).prop_map(|(a, b)| json!([a.v4, b.v6]));
    let pair = || egress().prop_map(|a| json!([a.v4, a.v6]));
    let one = || (egress(), any::<bool>()).prop_map(|(a, v4)| if v4 { json!(a.v4) } else { json!(a.v6) });
    let further = move || {
        prop_oneof![
            3 => Just(None),
            2 => select(vec!["eth0", "eth1", "eth2"]).prop_map(|i| Some(("interface", json!(i)))),
            2 => one().prop_map(|a| Some(("egressIP", a))),
            1 => pair().prop_map(|a| Some(("egressIPs", a))),
        ]
    };
    let chosen = (selector(NODE_LABELS), further()).prop_map(|(s, further)| entry_of(s, further));
    // Each says something else, but several may mean the same nodes.
    let several = (
        subsequence(entry_selectors(), 1..=4).prop_shuffle(),
        vec(further(), 4),
    )
        .prop_map(|(selectors, furthers)| {
            let entries = selectors.into_iter().zip(furthers);
            json!(
                entries
                    .map(|(s, further)| entry_of(s, further))
                    .collect::<Vec<_>>()
            )
        });
    let affinity = select(vec!["None", "Prefer", "Require"]);
    let field = |name: &str, value: Value| Map::from_iter([(name.to_owned(), value)]);
    prop_oneof![
        3 => one().prop_map(move |a| field("egressSourceIP", a)),
        3 => pair().prop_map(move |a| field("egressSourceIPs", a)),
        1 => apart().prop_map(move |a| field("egressSourceIPs", a)),
        3 => addresses().prop_map(move |a| field("egressSourceIPs", json!(a))),
        4 => chosen.prop_map(move |g| field("egressGateway", g)),
        4 => (several, affinity).prop_map(move |(g, affinity)| {
            let mut fields = field("egressGateways", g);
            fields.insert("zoneAffinity".into(), json!(affinity));
            fields
        }),
    ]
}

/// Selectors of nodes, no two of which say the same.
fn entry_selectors() -> Vec<Value> {
    let names = NODES.map(|name| json!({"matchLabels": {"kubernetes.io/hostname": name}}));
    let zone = |labels: Value| json!({"matchLabels": labels});
    let expression = |operator: &str| json!({"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": operator}]});
    let others = [
        json!({}),
        zone(json!({"topology.kubernetes.io/zone": "a"})),
        zone(json!({"egress": "yes"})),
        expression("Exists"),
        expression("DoesNotExist"),
    ];
    names.into_iter().chain(others).collect()
}

/// Several addresses: pairs, or of one family.
fn addresses() -> impl Strategy<Value = Vec<String>> {
    let families = select(vec![(true, false), (false, true), (true, true)]);
    (vec(egress(), 2..=4), families).prop_map(|(all, (v4, v6))| {
        // Each once, and both families of a node or none.
        let all: BTreeMap<String, String> = all
            .into_iter()
            .map(|a| (a.v4.to_string(), a.v6.to_string()))
            .collect();
        let fours = all.keys().filter(|_| v4);
        let sixes = all.values().filter(|_| v6);
        fours.chain(sixes).cloned().collect()
    })
}

/// An entry of `egressGateways`, and `egressGateway`.
fn entry_of(selector: Value, further: Option<(&str, Value)>) -> Value {
    let mut gateway = json!({"nodeSelector": selector});
    if let Some((field, value)) = further {
        gateway[field] = value;
    }
    gateway
}

/// Addresses that a node may hold, and some that none does.
fn egress() -> impl Strategy<Value = Dual> {
    let of_node = 0..NODES.len() as u8;
    prop_oneof![
        6 => (of_node.clone(), select(vec![2, 2, 2, 22, 32])).prop_map(|(n, first)| on_segment(first + n)),
        2 => of_node.prop_map(|n| address_on_eth1(n.into())),
        1 => Just(on_segment(77)),
    ]
}
