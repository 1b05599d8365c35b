//! Small worlds for tests.

use std::collections::BTreeMap;

use egressnat_crds::EgressNATPolicy;
use egressnat_operator::convert;
use egressnat_operator::world::World;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::snapshot::Snapshot;

/// A snapshot of the API server's objects, in YAML.
pub fn snapshot(yaml: &str) -> Snapshot {
    let (mut world, mut specs) = (World::default(), BTreeMap::new());
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let object = Value::deserialize(document).unwrap();
        if object["kind"] == "EgressNATPolicy" {
            let policy: EgressNATPolicy = read(object.clone());
            specs.insert(policy.metadata.name.unwrap(), policy.spec);
        }
        add(&mut world, object);
    }
    Snapshot::new(world, specs)
}

fn add(world: &mut World, object: Value) {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let key = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    };
    match kind.as_str() {
        "EgressNATPolicy" => drop(world.policies.insert(key, convert::policy(read(object)))),
        "Pod" => drop(world.pods.insert(key, convert::pod(read(object)))),
        "Node" => drop(world.nodes.insert(key, convert::node(read(object)))),
        "Namespace" => drop(world.namespaces.insert(key, convert::namespace(read(object)))),
        "ServiceCIDR" => drop(
            world
                .service_cidrs
                .insert(key, convert::service_cidr(read(object))),
        ),
        "EndpointSlice" => drop(world.api_servers.insert(key, convert::endpoints(read(object)))),
        "EgressPlan" => drop(world.plans.insert(key, convert::plan(read(object)))),
        other => panic!("no kind {other} in a world"),
    }
}

fn read<T: DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}
