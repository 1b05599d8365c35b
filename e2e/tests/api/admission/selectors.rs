//! The pods that a policy selects.

use serde_json::{Value, json};

use super::{OPERATOR_VALUES, Refused};

const EMPTY_SELECTION: &str = "an entry needs at least one of podSelector, namespaceSelector and nodeSelector; \
                               write podSelector: {} for every pod";

pub fn accepted() -> Vec<Value> {
    vec![
        json!({"selectors": [{"podSelector": {}}, {"namespaceSelector": {}, "nodeSelector": {}}]}),
        json!({"selectors": [{"podSelector": {"matchExpressions": [
            {"key": "app", "operator": "In", "values": ["a", "b"]},
            {"key": "example.com/tier", "operator": "NotIn", "values": [""]},
            {"key": "a", "operator": "Exists"},
            {"key": "b", "operator": "DoesNotExist", "values": []},
        ]}}]}),
    ]
}

pub fn refused() -> Vec<Refused> {
    let requirement = |selector: &str, requirement: Value| json!({"selectors": [{"podSelector": {}}, {selector: {"matchExpressions": [requirement]}}]});
    let without_values = json!({"key": "app", "operator": "NotIn", "values": []});
    let with_values = json!({"key": "app", "operator": "Exists", "values": ["a"]});
    let pods = "spec.selectors.podSelector.matchExpressions";
    let namespaces = "spec.selectors.namespaceSelector.matchExpressions";
    let nodes = "spec.selectors.nodeSelector.matchExpressions";
    vec![
        (json!({"selectors": [{}]}), "spec.selectors", EMPTY_SELECTION),
        (
            requirement("podSelector", without_values.clone()),
            pods,
            OPERATOR_VALUES,
        ),
        (requirement("podSelector", with_values), pods, OPERATOR_VALUES),
        (
            requirement("namespaceSelector", without_values.clone()),
            namespaces,
            OPERATOR_VALUES,
        ),
        (
            requirement("nodeSelector", without_values),
            nodes,
            OPERATOR_VALUES,
        ),
    ]
}
