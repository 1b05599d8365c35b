//! Values for tests.

use egressnat_crds::EgressNATPolicyStatus;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::convert;
use crate::store::{Change, Delta, Store};
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
        store.apply(change(object));
    }
    store.world().clone()
}

fn change(object: Value) -> Change {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let key = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    match kind.as_str() {
        "EgressNATPolicy" => Change::Policies(Delta::Set(key, convert::policy(read(object)))),
        "Pod" => Change::Pods(Delta::Set(key, convert::pod(read(object)))),
        "Node" => Change::Nodes(Delta::Set(key, convert::node(read(object)))),
        "Namespace" => Change::Namespaces(Delta::Set(key, convert::namespace(read(object)))),
        "ServiceCIDR" => Change::ServiceCidrs(Delta::Set(key, convert::service_cidr(read(object)))),
        "EndpointSlice" => Change::ApiServers(Delta::Set(key, convert::endpoints(read(object)))),
        "EgressPlan" => Change::Plans(Delta::Set(key, convert::plan(read(object)))),
        other => panic!("no kind {other} in the world"),
    }
}

fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}
