//! Gateways chosen by label: one, or several.

use serde_json::{Value, json};

use super::{
    NO_SOURCE, NO_SOURCES, NOT_ADDRESSES, ONE_ADDRESS, OPERATOR_VALUES, Refused, TWO_OF_A_FAMILY, merge,
};

const ZONES_OF_NOTHING: &str = "zoneAffinity chooses among egressGateways: write the gateway as an entry of \
                                egressGateways, or leave zoneAffinity out";

pub fn accepted() -> Vec<Value> {
    let gateway = |gateway: Value| json!({"egressSourceIP": null, "egressGateway": gateway});
    vec![
        gateway(json!({"nodeSelector": {"matchLabels": {"egress": "yes"}}})),
        gateway(json!({"nodeSelector": {}, "interface": "bond0.100"})),
        gateway(json!({"nodeSelector": {}, "interface": "a".repeat(127)})),
        gateway(json!({"nodeSelector": {}, "egressIP": "192.0.2.10"})),
        gateway(json!({"nodeSelector": {}, "egressIPs": ["192.0.2.10", "2001:db8::a"]})),
        several(json!([{"nodeSelector": {}}]), "None"),
        several(
            json!([
                {"nodeSelector": {"matchLabels": {"egress": "a"}}, "interface": "eth1"},
                {"nodeSelector": {"matchLabels": {"egress": "b"}}, "egressIP": "192.0.2.10"},
                {"nodeSelector": {}, "egressIPs": ["192.0.2.11", "2001:db8::a"]},
            ]),
            "Require",
        ),
        several(entries(16), "Prefer"),
        json!({"zoneAffinity": "None"}),
    ]
}

pub fn several(gateways: Value, zone_affinity: &str) -> Value {
    json!({"egressSourceIP": null, "egressGateways": gateways, "zoneAffinity": zone_affinity})
}

pub fn entries(count: usize) -> Value {
    let entry = |n: usize| json!({"nodeSelector": {"matchLabels": {"egress": n.to_string()}}});
    (0..count).map(entry).collect()
}

pub fn refused() -> Vec<Refused> {
    [refused_single(), refused_several()].concat()
}

fn refused_single() -> Vec<Refused> {
    let gateway = |choice: Value| {
        let mut spec = json!({"egressSourceIP": null, "egressGateway": {"nodeSelector": {}}});
        merge(&mut spec["egressGateway"], &choice);
        spec
    };
    let bad_requirement = json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}});
    let both = json!({"interface": "eth1", "egressIP": "192.0.2.10"});
    vec![
        (
            gateway(both),
            "spec.egressGateway",
            "set at most one of interface, egressIP and egressIPs",
        ),
        (
            gateway(json!({"egressIP": "192.0.2"})),
            "spec.egressGateway.egressIP",
            "egressIP must be an IPv4 or IPv6 address",
        ),
        (
            gateway(json!({"egressIP": "127.0.0.1"})),
            "spec.egressGateway.egressIP",
            NO_SOURCE,
        ),
        (
            gateway(json!({"egressIPs": ["192.0.2.10", "fe80::1"]})),
            "spec.egressGateway.egressIPs",
            NO_SOURCES,
        ),
        (
            gateway(json!({"egressIPs": ["::g"]})),
            "spec.egressGateway.egressIPs",
            NOT_ADDRESSES,
        ),
        (
            gateway(json!({"egressIPs": ["2001:db8::1", "2001:db8::2"]})),
            "spec.egressGateway.egressIPs",
            TWO_OF_A_FAMILY,
        ),
        (
            gateway(bad_requirement),
            "spec.egressGateway.nodeSelector.matchExpressions",
            OPERATOR_VALUES,
        ),
    ]
}

fn refused_several() -> Vec<Refused> {
    // Beside a good one, so that each is seen wherever it stands.
    let gateways = |second: Value| {
        let mut gateway = json!({"nodeSelector": {}});
        merge(&mut gateway, &second);
        several(json!([{"nodeSelector": {}}, gateway]), "None")
    };
    let bad_requirement = json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}});
    vec![
        (
            json!({"egressGateways": [{"nodeSelector": {}}]}),
            "spec",
            ONE_ADDRESS,
        ),
        (
            json!({"egressSourceIP": null, "egressGateways": entries(2), "egressGateway": {"nodeSelector": {}}}),
            "spec",
            ONE_ADDRESS,
        ),
        (json!({"zoneAffinity": "Prefer"}), "spec", ZONES_OF_NOTHING),
        (
            gateways(json!({"interface": "eth1", "egressIP": "192.0.2.10"})),
            "spec.egressGateways",
            "set at most one of interface, egressIP and egressIPs",
        ),
        (
            gateways(json!({"egressIP": "192.0.2"})),
            "spec.egressGateways.egressIP",
            "egressIP must be an IPv4 or IPv6 address",
        ),
        (
            gateways(json!({"egressIP": "169.254.1.1"})),
            "spec.egressGateways.egressIP",
            NO_SOURCE,
        ),
        (
            gateways(json!({"egressIPs": ["ff02::1"]})),
            "spec.egressGateways.egressIPs",
            NO_SOURCES,
        ),
        (
            gateways(json!({"egressIPs": ["::g"]})),
            "spec.egressGateways.egressIPs",
            NOT_ADDRESSES,
        ),
        (
            gateways(json!({"egressIPs": ["192.0.2.10", "192.0.2.11"]})),
            "spec.egressGateways.egressIPs",
            TWO_OF_A_FAMILY,
        ),
        (
            gateways(bad_requirement),
            "spec.egressGateways.nodeSelector.matchExpressions",
            OPERATOR_VALUES,
        ),
    ]
}
