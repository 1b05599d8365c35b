//! Small worlds for tests.

use std::collections::BTreeMap;

use egressnat_crds::EgressNATPolicy;
use egressnat_operator::convert;
use egressnat_operator::store::Store;
use serde::Deserialize;
use serde_json::Value;

use crate::services;
use crate::snapshot::Snapshot;

/// A snapshot of the API server's objects, in YAML.
pub fn snapshot(yaml: &str) -> Snapshot {
    let (mut store, mut specs, mut exposed) = (Store::default(), BTreeMap::new(), Vec::new());
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        if object["kind"] == "EgressNATPolicy" {
            let policy: EgressNATPolicy = serde_json::from_value(object.clone()).unwrap();
            specs.insert(policy.metadata.name.unwrap(), policy.spec);
        }
        if object["kind"] == "Service" {
            exposed.extend(services::exposed(&serde_json::from_value(object).unwrap()));
            continue;
        }
        let change = convert::change(object).unwrap();
        store.apply(change.expect("a kind that is watched"));
    }
    Snapshot::new(store.world().clone(), specs, exposed)
}
