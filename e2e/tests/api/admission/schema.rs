//! What the schema's types and bounds refuse.

use serde_json::{Value, json};

use super::Refused;
use super::gateways::{entries, several};

pub fn accepted() -> Vec<Value> {
    vec![json!({}), json!({"priority": -5, "noGateway": "NodeIP"})]
}

pub fn refused() -> Vec<Refused> {
    let cidrs: Vec<String> = (0..257)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    let requirement = json!({"matchExpressions": [{"key": "a", "operator": "Equals", "values": ["b"]}]});
    let gateway = json!({"nodeSelector": {}, "interface": "a".repeat(128)});
    vec![
        (json!({"selectors": null}), "spec.selectors", "Required value"),
        (
            json!({"selectors": []}),
            "spec.selectors",
            "should have at least 1 items",
        ),
        (
            json!({"destinationCIDRs": [], "egressSourceIP": null, "egressGateway": {"nodeSelector": {}}}),
            "spec.destinationCIDRs",
            "should have at least 1 items",
        ),
        (
            json!({"destinationCIDRs": cidrs}),
            "spec.destinationCIDRs",
            "must have at most 256 items",
        ),
        (
            json!({"priority": 1_000_001}),
            "spec.priority",
            "should be less than or equal to 1000000",
        ),
        (
            json!({"priority": "high"}),
            "spec.priority",
            "must be of type integer: \"string\"",
        ),
        (
            json!({"noGateway": "Forward"}),
            "spec.noGateway",
            "supported values: \"Drop\", \"NodeIP\"",
        ),
        (
            several(json!([]), "None"),
            "spec.egressGateways",
            "should have at least 1 items",
        ),
        (
            several(entries(17), "None"),
            "spec.egressGateways",
            "must have at most 16 items",
        ),
        (
            several(entries(2), "Always"),
            "spec.zoneAffinity",
            "supported values: \"None\", \"Prefer\", \"Require\"",
        ),
        (
            json!({"selectors": [{"podSelector": requirement}]}),
            "spec.selectors.podSelector.matchExpressions.operator",
            "supported values: \"In\", \"NotIn\", \"Exists\", \"DoesNotExist\"",
        ),
        (
            json!({"egressSourceIP": null, "egressGateway": gateway}),
            "spec.egressGateway.interface",
            "may not be more than 127 bytes",
        ),
        (
            json!({"egressSourceIP": null, "egressSourceIPs": []}),
            "spec.egressSourceIPs",
            "should have at least 1 items",
        ),
        (
            json!({"sourcePorts": 443}),
            "spec.sourcePorts",
            "must be of type string: \"integer\"",
        ),
    ]
}
