//! The two kinds as the API server serves them: their names, their tables, their two halves.

use std::collections::BTreeSet;

use egressnat_crds::{AGENT_MANAGER, EgressNATPolicy, EgressPlan, OPERATOR_MANAGER};
use egressnat_e2e::site::Site;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt, ResourceExt,
    api::{Patch, PatchParams},
    core::Request,
};
use serde_json::{Value, json};

use super::support::*;

#[test]
fn the_chart_has_the_crds_of_the_types() {
    for crd in [EgressNATPolicy::crd(), EgressPlan::crd()] {
        let file = Site::root().join(format!("charts/egressnat/crds/{}.yaml", crd.spec.names.plural));
        let text = std::fs::read_to_string(&file).unwrap();
        let installed: CustomResourceDefinition = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(
            installed,
            crd,
            "{} is not what the types say: run `make crds`",
            file.display()
        );
    }
}

#[tokio::test]
async fn short_names_and_the_category_are_served() {
    let resources = shared()
        .admin()
        .await
        .list_api_group_resources("egressnat.io/v1alpha1")
        .await
        .unwrap()
        .resources;
    for (plural, short) in [("egressnatpolicies", "enp"), ("egressplans", "epl")] {
        let resource = resources.iter().find(|resource| resource.name == plural).unwrap();
        assert_eq!(resource.short_names.as_deref(), Some(&[short.to_owned()][..]));
        assert_eq!(
            resource.categories.as_deref(),
            Some(&["egressnat".to_owned()][..])
        );
        assert!(!resource.namespaced);
        assert!(
            resources
                .iter()
                .any(|resource| resource.name == format!("{plural}/status"))
        );
        shared().kubectl(&["get", short], "");
    }
}

#[tokio::test]
async fn a_policy_shows_its_gateway_address_pods_and_readiness() {
    let client = shared().admin().await;
    let policies: Api<EgressNATPolicy> = Api::all(client.clone());
    let spec = json!({"selectors": [{"podSelector": {}}], "egressSourceIP": "192.0.2.10"});
    let status = json!({
        "conditions": [condition("Accepted", "True", "Valid"), condition("Programmed", "False", "Waiting")],
        "gateways": [
            {"node": "node-a", "addresses": ["192.0.2.10", "2001:db8::10"]},
            {"node": "node-b", "addresses": ["192.0.2.11"]},
        ],
        "gatewayNodes": "node-a,node-b",
        "addresses": "192.0.2.10,2001:db8::10,192.0.2.11",
        "matchedPods": 3, "nodesConcerned": 2, "nodesProgrammed": 1,
    });
    let apply = PatchParams::apply(OPERATOR_MANAGER);
    policies
        .patch("table", &apply, &Patch::Apply(policy("table", spec)))
        .await
        .unwrap();
    policies
        .patch_status("table", &apply, &Patch::Apply(policy_status(status)))
        .await
        .unwrap();

    let [always, wide] = table(&client, "egressnatpolicies", "table").await;
    let cells = [
        ("Name", json!("table")),
        ("Gateway", json!("node-a,node-b")),
        ("Address", json!("192.0.2.10,2001:db8::10,192.0.2.11")),
        ("Pods", json!(3)),
        ("Ready", json!("False")),
    ];
    assert_eq!(always[..5], cells.map(owned));
    assert_eq!(always[5].0, "Age");
    let cells = [
        ("Reason", json!("Waiting")),
        ("Priority", json!(100)),
        ("Nodes", json!(2)),
        ("Programmed", json!(1)),
    ];
    assert_eq!(wide, cells.map(owned));
}

#[tokio::test]
async fn a_plan_shows_whether_its_node_is_ready() {
    let client = shared().admin().await;
    let plans: Api<EgressPlan> = Api::all(client.clone());
    let status = json!({"observedGeneration": 1, "conditions": [condition("Ready", "False", "PortInUse")]});
    let agent = PatchParams::apply(AGENT_MANAGER);
    plans
        .patch(
            "table",
            &PatchParams::apply(OPERATOR_MANAGER),
            &plan("table", json!({})),
        )
        .await
        .unwrap();
    plans
        .patch_status("table", &agent, &plan_status(status))
        .await
        .unwrap();

    let [always, wide] = table(&client, "egressplans", "table").await;
    let cells = [
        ("Name", json!("table")),
        ("Ready", json!("False")),
        ("Reason", json!("PortInUse")),
    ];
    assert_eq!(always[..3], cells.map(owned));
    assert_eq!(
        wide,
        [("Generation", json!(1)), ("Programmed", json!(1))].map(owned)
    );
}

#[tokio::test]
async fn operator_and_agent_write_their_halves_without_a_conflict() {
    let node = "halves";
    let operator: Api<EgressPlan> = Api::all(shared().client_of(OPERATOR).await);
    let agent: Api<EgressPlan> = Api::all(shared().agent_of(node).await);
    let (as_operator, as_agent) = (
        PatchParams::apply(OPERATOR_MANAGER),
        PatchParams::apply(AGENT_MANAGER),
    );
    let pod = |ip: &str| json!({"uid": "u", "name": "default/a", "ips": [ip], "profile": 1});

    let spec = json!({"underlay": "192.0.2.1", "pods": [pod("10.0.0.1")]});
    let first = operator
        .patch(node, &as_operator, &plan(node, spec))
        .await
        .unwrap();
    let ready = json!({"observedGeneration": first.metadata.generation});
    let reported = agent
        .patch_status(node, &as_agent, &plan_status(ready))
        .await
        .unwrap();
    assert_eq!(
        reported.metadata.generation, first.metadata.generation,
        "a status is no new generation"
    );

    let spec = json!({"underlay": "192.0.2.1", "pods": [pod("10.0.0.2")]});
    let second = operator
        .patch(node, &as_operator, &plan(node, spec))
        .await
        .unwrap();
    assert_eq!(
        second.spec.pods[0].ips,
        ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(
        second.metadata.generation,
        first.metadata.generation.map(|generation| generation + 1)
    );
    let status = second.status.clone().unwrap();
    assert_eq!(
        status.observed_generation, first.metadata.generation,
        "the operator left the status"
    );

    let managers: BTreeSet<_> = second
        .managed_fields()
        .iter()
        .filter_map(|entry| entry.manager.as_deref())
        .collect();
    assert_eq!(managers, BTreeSet::from([AGENT_MANAGER, OPERATOR_MANAGER]));
}

#[tokio::test]
async fn what_is_written_to_the_status_leaves_the_spec() {
    let plans: Api<EgressPlan> = Api::all(shared().admin().await);
    let spec = json!({"underlay": "192.0.2.1"});
    let before = plans
        .patch("spec", &PatchParams::apply(OPERATOR_MANAGER), &plan("spec", spec))
        .await
        .unwrap();
    let both = json!({"spec": {"underlay": "192.0.2.66"}, "status": {"observedGeneration": 1}});
    let after = plans
        .patch_status("spec", &PatchParams::default(), &Patch::Merge(both))
        .await
        .unwrap();
    assert_eq!(after.spec, before.spec);
    assert_eq!(after.status.unwrap().observed_generation, Some(1));
}

/// A column's name and its cell.
type Cell = (String, Value);

/// The table that the API server makes of an object: the columns always shown, and those of `-o wide`.
async fn table(client: &Client, plural: &str, name: &str) -> [Vec<Cell>; 2] {
    let list = Request::new(format!("/apis/egressnat.io/v1alpha1/{plural}"));
    let mut request = list.get(name, &Default::default()).unwrap();
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io".parse().unwrap();
    request.headers_mut().insert("accept", accept);
    let table: Value = client.request(request).await.unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    let mut shown = [Vec::new(), Vec::new()];
    for (column, cell) in columns.iter().zip(cells) {
        let wide = usize::from(column["priority"] != 0);
        shown[wide].push((column["name"].as_str().unwrap().to_owned(), cell.clone()));
    }
    shown
}

fn owned((name, cell): (&str, Value)) -> Cell {
    (name.to_owned(), cell)
}
