//! The chart's RBAC is enough and no more. Each service account asks, with its own token, for all of its
//! rules, and for single rights as the client libraries do: both answers must be what is written here.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    authorization::v1::{
        ResourceAttributes, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
        SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
    },
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::support::*;

/// A watch lists first; nothing is read one by one.
const READ: &[&str] = &["list", "watch"];

/// Rights of one kind: namespace (empty: everywhere), `group/resource[:name]`, verbs.
type Rights = (&'static str, &'static str, &'static [&'static str]);

/// What the operator does.
const OPERATOR_RIGHTS: &[Rights] = &[
    ("", "egressnat.io/egressnatpolicies", READ),
    ("", "egressnat.io/egressnatpolicies/status", &["patch"]),
    (
        "",
        "egressnat.io/egressplans",
        &["list", "watch", "create", "patch", "delete"],
    ),
    ("", "/pods", READ),
    ("", "/namespaces", READ),
    ("", "/nodes", &["list", "watch", "patch"]),
    ("", "networking.k8s.io/servicecidrs", READ),
    (NAMESPACE, "coordination.k8s.io/leases", &["create"]),
    (
        NAMESPACE,
        "coordination.k8s.io/leases:egressnat-operator",
        &["get", "update"],
    ),
    ("default", "discovery.k8s.io/endpointslices", READ),
    // On policies in `default`, on pods in theirs.
    ("", "events.k8s.io/events", &["create", "patch"]),
];

/// What an agent does.
const AGENT_RIGHTS: &[Rights] = &[
    ("", "egressnat.io/egressplans", READ),
    ("", "egressnat.io/egressplans/status", &["patch"]),
];

/// What neither may do, though an attacker would like to.
const NOBODYS_RIGHTS: &[Rights] = &[
    ("", "/secrets", &["get", "list", "watch", "create"]),
    (NAMESPACE, "/secrets", &["get", "list"]),
    ("", "/configmaps", &["get", "list", "update"]),
    ("", "/pods", &["create", "update", "patch", "delete"]),
    ("", "/pods/exec", &["get", "create"]),
    (
        "",
        "events.k8s.io/events",
        &["get", "list", "watch", "update", "delete"],
    ),
    ("", "/events", &["create", "patch", "list"]),
    ("", "/nodes", &["create", "update", "delete"]),
    ("", "/nodes/proxy", &["get", "create"]),
    ("", "/nodes/status", &["patch"]),
    ("", "/namespaces", &["create", "patch", "delete"]),
    (NAMESPACE, "/serviceaccounts/token", &["create"]),
    ("", "/serviceaccounts", &["impersonate"]),
    (
        "",
        "egressnat.io/egressnatpolicies",
        &["create", "update", "patch", "delete"],
    ),
    ("", "egressnat.io/egressplans", &["update", "deletecollection"]),
    (
        "kube-system",
        "coordination.k8s.io/leases",
        &["get", "create", "update"],
    ),
    (
        NAMESPACE,
        "coordination.k8s.io/leases:another",
        &["get", "update", "patch"],
    ),
    (
        NAMESPACE,
        "coordination.k8s.io/leases:egressnat-operator",
        &["patch", "delete"],
    ),
    (
        "",
        "rbac.authorization.k8s.io/clusterroles",
        &["bind", "escalate", "patch"],
    ),
    (
        "",
        "admissionregistration.k8s.io/validatingadmissionpolicies",
        &["patch", "delete"],
    ),
    (
        "",
        "apiextensions.k8s.io/customresourcedefinitions",
        &["patch", "delete"],
    ),
];

#[tokio::test]
async fn the_operator_may_do_what_it_does_and_nothing_else() {
    assert_exactly(OPERATOR, OPERATOR_RIGHTS).await;
    let client = shared().client_of(OPERATOR).await;
    assert_answers(&client, OPERATOR_RIGHTS, true).await;
    assert_answers(&client, NOBODYS_RIGHTS, false).await;
    assert_answers(
        &client,
        &[("", "egressnat.io/egressplans/status", &["update", "patch"])],
        false,
    )
    .await;
}

#[tokio::test]
async fn an_agent_may_do_what_it_does_and_nothing_else() {
    assert_exactly(AGENT, AGENT_RIGHTS).await;
    let client = shared().client_of(AGENT).await;
    assert_answers(&client, AGENT_RIGHTS, true).await;
    assert_answers(&client, NOBODYS_RIGHTS, false).await;
    let operators: &[Rights] = &[
        ("", "egressnat.io/egressplans", &["create", "patch", "delete"]),
        ("", "egressnat.io/egressnatpolicies", READ),
        ("", "egressnat.io/egressnatpolicies/status", &["patch"]),
        ("", "/pods", READ),
        ("", "/nodes", &["list", "watch", "patch"]),
        (NAMESPACE, "coordination.k8s.io/leases", &["create"]),
        ("", "events.k8s.io/events", &["create", "patch"]),
        ("default", "events.k8s.io/events", &["create"]),
    ];
    assert_answers(&client, operators, false).await;
}

/// The account's rules, those of every account taken away, are these rights and no others.
async fn assert_exactly(account: &str, expected: &[Rights]) {
    let (own, everybodys) = (shared().client_of(account).await, nobody().await);
    for namespace in [NAMESPACE, "default", "kube-system"] {
        let granted = &rules(&own, namespace).await - &rules(&everybodys, namespace).await;
        let here = expected
            .iter()
            .filter(|(scope, ..)| scope.is_empty() || *scope == namespace);
        let needed: BTreeSet<_> = here
            .flat_map(|(_, what, verbs)| verbs.iter().map(move |verb| format!("{verb} {what}")))
            .collect();
        assert_eq!(
            granted, needed,
            "{account} in {namespace}: granted (left), needed (right)"
        );
    }
}

/// What the client may do in a namespace, one text for each verb on each thing.
async fn rules(client: &Client, namespace: &str) -> BTreeSet<String> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec {
            namespace: Some(namespace.into()),
        },
        ..Default::default()
    };
    let answer = Api::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .unwrap();
    let status = answer.status.unwrap();
    assert!(!status.incomplete, "{:?}", status.evaluation_error);
    status.resource_rules.iter().flat_map(single_rights).collect()
}

fn single_rights(rule: &ResourceRule) -> Vec<String> {
    let some = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let names = match some(&rule.resource_names) {
        names if names.is_empty() => vec![String::new()],
        names => names.iter().map(|name| format!(":{name}")).collect(),
    };
    let mut rights = Vec::new();
    for group in some(&rule.api_groups) {
        for resource in some(&rule.resources) {
            for name in &names {
                let what = format!("{group}/{resource}{name}");
                rights.extend(rule.verbs.iter().map(|verb| format!("{verb} {what}")));
            }
        }
    }
    rights
}

async fn assert_answers(client: &Client, rights: &[Rights], allowed: bool) {
    for (namespace, what, verbs) in rights {
        for verb in *verbs {
            let answer = may(client, namespace, what, verb).await;
            assert_eq!(answer, allowed, "{verb} {what} in {namespace:?}");
        }
    }
}

/// What the API server answers to "may I?".
async fn may(client: &Client, namespace: &str, what: &str, verb: &str) -> bool {
    let (group, what) = what.split_once('/').unwrap();
    let (what, name) = what
        .split_once(':')
        .map_or((what, None), |(what, name)| (what, Some(name)));
    let (resource, subresource) = what
        .split_once('/')
        .map_or((what, None), |(what, subresource)| (what, Some(subresource)));
    let attributes = ResourceAttributes {
        group: Some(group.into()),
        resource: Some(resource.into()),
        subresource: subresource.map(Into::into),
        name: name.map(Into::into),
        namespace: Some(namespace.into()),
        verb: Some(verb.into()),
        ..Default::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..Default::default()
        },
        ..Default::default()
    };
    let answer = Api::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .unwrap();
    answer.status.unwrap().allowed
}

/// A service account without a binding: what it may do, every account may.
async fn nobody() -> Client {
    let accounts: Api<ServiceAccount> = Api::namespaced(shared().admin().await, NAMESPACE);
    let nobody = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}});
    let apply = PatchParams::apply("test");
    accounts
        .patch("nobody", &apply, &Patch::Apply(nobody))
        .await
        .unwrap();
    shared().client_of("nobody").await
}
