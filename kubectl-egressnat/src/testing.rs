//! Small worlds for tests.

use std::collections::BTreeMap;

use egressnat_crds::EgressNATPolicy;
use egressnat_operator::convert;
use egressnat_operator::store::Change;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::snapshot::{Snapshot, there};

/// A snapshot of the API server's objects, in YAML.
pub fn snapshot(yaml: &str) -> Snapshot {
    let mut specs = BTreeMap::new();
    let mut changes = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        if object["kind"] == "EgressNATPolicy" {
            let policy: EgressNATPolicy = read(object.clone());
            specs.insert(policy.metadata.name.unwrap(), policy.spec);
        }
        changes.push(change(object));
    }
    Snapshot::new(changes, specs)
}

fn change(object: Value) -> Change {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let key = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    match kind.as_str() {
        "EgressNATPolicy" => Change::Policies(there(key, convert::policy(read(object)))),
        "Pod" => Change::Pods(there(key, convert::pod(read(object)))),
        "Node" => Change::Nodes(there(key, convert::node(read(object)))),
        "Namespace" => Change::Namespaces(there(key, convert::namespace(read(object)))),
        "ServiceCIDR" => Change::ServiceCidrs(there(key, convert::service_cidr(read(object)))),
        "EndpointSlice" => Change::ApiServers(there(key, convert::endpoints(read(object)))),
        "EgressPlan" => Change::Plans(there(key, convert::plan(read(object)))),
        other => panic!("no kind {other} in a world"),
    }
}

fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}
