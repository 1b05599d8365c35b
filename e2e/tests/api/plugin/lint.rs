//! `lint` against the API server's own judgement.

use kube::api::{Patch, PatchParams};

use super::*;

#[tokio::test]
async fn lint_refuses_what_the_api_server_refuses() {
    let client = shared().admin().await;
    let plugin = Plugin::of(shared());
    let good = spec_from_gateway();
    let with = |field: &str, value: Value| {
        let mut spec = good.clone();
        spec[field] = value;
        spec
    };
    let cases = [
        (true, good.clone()),
        (true, with("excludedCIDRs", json!(["198.51.100.0/25"]))),
        (true, with("priority", json!(-3))),
        (false, with("priority", json!("high"))),
        (false, with("priority", json!(3_000_000))),
        (false, with("noGateway", json!("Forward"))),
        (false, with("unknown", json!(1))),
        (false, with("selectors", json!([]))),
        (false, with("selectors", json!([{}]))),
        (
            false,
            with(
                "selectors",
                json!([{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]),
            ),
        ),
        (false, with("destinationCIDRs", json!(["198.51.100.1/24"]))),
        (false, with("destinationCIDRs", json!(["198.51.100"]))),
        (false, with("destinationCIDRs", json!(["2001:db8::/32"]))),
        (false, with("egressSourceIP", json!("192.0.2"))),
        (false, with("egressSourceIPs", json!(["192.0.2.1"]))),
        (false, with("egressGateway", json!({"nodeSelector": {}}))),
    ];
    for (right, spec) in cases {
        let object = policy("linted", spec);
        assert_eq!(
            accepts(&client, &object).await,
            right,
            "the API server of {object}"
        );
        let said = plugin.says_of(&["lint", "-"], &object.to_string());
        assert_eq!(
            said.code,
            Some(i32::from(!right)),
            "lint of {object}: {}{}",
            said.out,
            said.err
        );
    }
}

/// Whether the API server would take the policy, strictly.
async fn accepts(client: &Client, object: &Value) -> bool {
    let policies: Api<kube::api::DynamicObject> = Api::all_with(
        client.clone(),
        &kube::api::ApiResource::erase::<EgressNATPolicy>(&()),
    );
    let params = PatchParams::apply("lint").dry_run().validation_strict();
    let name = object["metadata"]["name"].as_str().unwrap();
    match policies.patch(name, &params, &Patch::Apply(object)).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if [400, 422, 500].contains(&status.code) => false,
        Err(error) => panic!("{error}"),
    }
}
