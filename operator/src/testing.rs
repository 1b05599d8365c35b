//! Values for tests.

use egressnat_crds::EgressNATPolicyStatus;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::convert;
use crate::store::Store;
use crate::valid::ValidPolicy;
use crate::world::{Policy, PolicySpec, World};

/// A moment, in seconds from the one at which everything in tests is made.
pub fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// A valid policy, whose uid is its name.
pub fn policy(name: &str) -> Policy {
    let spec = "{selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}";
    Policy {
        uid: name.into(),
        generation: 1,
        created: time(0),
        spec: PolicySpec::Valid(ValidPolicy::parse(&serde_yaml_ng::from_str(spec).unwrap()).unwrap()),
        status: EgressNATPolicyStatus::default(),
    }
}

/// A world of the API server's objects, in YAML.
pub fn world(yaml: &str) -> World {
    let mut store = Store::default();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        let change = convert::change(object).unwrap();
        store.apply(change.expect("a kind that is watched"));
    }
    store.world().clone()
}
