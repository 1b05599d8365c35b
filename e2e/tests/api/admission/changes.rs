//! Changes that would surprise: what is right as a new policy, and refused of one that is there.

use kube::{
    Api, Client, Error,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use egressnat_crds::EgressNATPolicy;

use super::{Refused, changed, create, without_indexes};
use crate::support::*;

const WIDENED: &str = "without destinationCIDRs the policy would apply to everything outside the cluster: write \
                       0.0.0.0/0 and ::/0 to mean that, or delete the policy";

/// Merge patches to a policy with the good spec, each of which breaks a rule about changes.
pub fn refused() -> Vec<Refused> {
    vec![(json!({"destinationCIDRs": null}), "spec", WIDENED)]
}

/// Merge patches that are near to those.
fn accepted() -> Vec<Value> {
    vec![
        json!({"destinationCIDRs": ["0.0.0.0/0", "::/0"]}),
        json!({"excludedCIDRs": ["10.0.0.0/8"]}),
        json!({"priority": 7}),
    ]
}

/// The policies of this name, and how a patch of the spec of one is answered, which is not written.
struct Change {
    api: Api<EgressNATPolicy>,
    name: &'static str,
}

impl Change {
    /// Of a policy that is made for it.
    async fn of(client: &Client, name: &'static str, spec: Value) -> Self {
        let api = Api::all(client.clone());
        let object = serde_json::from_value(policy(name, spec)).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap();
        Self { api, name }
    }

    async fn by(&self, spec: &Value) -> Result<EgressNATPolicy, Error> {
        let dry_run = PatchParams::default().dry_run();
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api.patch(self.name, &dry_run, &patch).await
    }

    async fn done(self) {
        self.api
            .delete(self.name, &DeleteParams::default())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_change_that_would_surprise_is_refused_and_says_why() {
    let client = shared().admin().await;
    let change = Change::of(&client, "change-refused", changed(&json!({}))).await;
    for (patch, field, message) in refused() {
        create(&client, &changed(&patch))
            .await
            .unwrap_or_else(|error| panic!("new: {error}"));
        let Err(Error::Api(status)) = change.by(&patch).await else {
            panic!("accepted: {patch}")
        };
        let causes = status.details.unwrap().causes;
        let [cause] = causes.as_slice() else {
            panic!("{patch} should break one rule, not: {causes:#?}")
        };
        assert_eq!(without_indexes(&cause.field), field);
        assert!(cause.message.ends_with(message), "{patch}: {}", cause.message);
    }
    change.done().await;
}

#[tokio::test]
async fn other_changes_are_accepted() {
    let client = shared().admin().await;
    let change = Change::of(&client, "change-accepted", changed(&json!({}))).await;
    for patch in accepted() {
        change
            .by(&patch)
            .await
            .unwrap_or_else(|error| panic!("{patch}: {error}"));
    }
    change.done().await;
    // One that never named destinations need not begin to.
    let without = changed(&json!({"destinationCIDRs": null}));
    let change = Change::of(&client, "change-everything", without).await;
    change.by(&json!({"priority": 7})).await.unwrap();
    change
        .by(&json!({"destinationCIDRs": ["192.0.2.0/24"]}))
        .await
        .unwrap();
    change.done().await;
}

/// What the operator knows of a policy is in its status, which a user of policies has no hand in: neither in a new
/// policy, nor in one that is there, nor by annotations, which nobody reads.
#[tokio::test]
async fn what_a_user_writes_into_the_status_is_dropped() {
    let client = shared().admin().await;
    let mut forged = policy("change-forged", changed(&json!({})));
    forged["status"] = json!({"id": 7, "gateways": [{"node": "forged", "key": "0", "id": 8}]});
    let api: Api<EgressNATPolicy> = Api::all(client.clone());
    let object = serde_json::from_value(forged.clone()).unwrap();
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(made.status, None);
    let patch = Patch::Merge(json!({"status": forged["status"], "spec": {"priority": 7}}));
    let patched = api
        .patch("change-forged", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!((patched.spec.priority, patched.status), (7, None));
    // The probe sees a status where one is written by its own door.
    let status = Patch::Merge(json!({"status": forged["status"]}));
    let written = api
        .patch_status("change-forged", &PatchParams::default(), &status)
        .await
        .unwrap();
    assert_eq!(written.status.unwrap().id, Some(7));
    api.delete("change-forged", &DeleteParams::default())
        .await
        .unwrap();
}
