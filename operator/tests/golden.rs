//! Shapes of plans and statuses: every folder of `testdata/plan` holds a world, as the objects that the API
//! server would show, and what follows from it. `BLESS=1 cargo test -p egressnat-operator --test golden`
//! writes the latter anew; read the difference before you commit it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use egressnat_crds::{EgressNATPolicyStatus, EgressPlanSpec};
use egressnat_operator::plan::plan;
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::World;
use egressnat_operator::{convert, status};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

#[test]
fn plans_and_statuses_are_those_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plan");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(!cases.is_empty());
    let bless = std::env::var_os("BLESS").is_some();
    let mut different = String::new();
    for case in cases {
        let world = world(&fs::read_to_string(case.join("world.yaml")).unwrap());
        let outcome = plan(&world);
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let plans: BTreeMap<String, EgressPlanSpec> = outcome.plans.clone();
        let statuses: BTreeMap<String, EgressNATPolicyStatus> = status::due(&world, &outcome, now);
        for (file, made) in [
            ("plans.yaml", serde_yaml_ng::to_string(&plans).unwrap()),
            ("status.yaml", serde_yaml_ng::to_string(&statuses).unwrap()),
        ] {
            let path = case.join(file);
            if bless {
                fs::write(&path, &made).unwrap();
            }
            let written = fs::read_to_string(&path).unwrap_or_default();
            if written != made {
                writeln!(different, "{}\n--- is now\n{made}", path.display()).unwrap();
            }
        }
    }
    assert!(different.is_empty(), "{different}\nBLESS=1 writes them anew");
}

/// A world of objects in YAML.
fn world(yaml: &str) -> World {
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
