//! What the tests of this rung share: one API server with the chart installed, and clients of it.

use std::{process::Command, sync::OnceLock, time::Duration};

use egressnat_e2e::{api_server::ApiServer, command, site::Site, wait};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Node, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

/// The namespace and the name of the release, as the README has them.
pub const NAMESPACE: &str = "egressnat-system";
pub const RELEASE: &str = "egressnat";
pub const OPERATOR: &str = "egressnat-operator";
pub const AGENT: &str = "egressnat-agent";

/// The API server of the tests that can share one, with the chart installed.
pub fn server() -> &'static ApiServer {
    static SERVER: OnceLock<ApiServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = ApiServer::start().unwrap_or_else(|error| panic!("{error}"));
        install_chart(&server);
        server
    })
}

/// `helm install` as a user does it. Nothing runs the pods here, so nothing waits for them.
pub fn install_chart(server: &ApiServer) {
    let mut helm = helm();
    helm.args([
        "install",
        RELEASE,
        &chart(),
        "--namespace",
        NAMESPACE,
        "--create-namespace",
    ]);
    command::output(helm.env("KUBECONFIG", server.kubeconfig())).unwrap();
    wait::until("both CRDs established", Duration::from_secs(30), || {
        command::output(server.kubectl().args([
            "wait",
            "--for=condition=Established",
            "crd/egressnatpolicies.egressnat.io",
            "crd/egressplans.egressnat.io",
        ]))
    })
    .unwrap();
}

pub fn helm() -> Command {
    let helm = Site::program("helm");
    assert!(helm.exists(), "{} is missing: run e2e/setup.sh", helm.display());
    Command::new(helm)
}

/// The chart's folder.
pub fn chart() -> String {
    Site::root().join("charts/egressnat").display().to_string()
}

/// The administrator's configuration.
pub async fn config(server: &ApiServer) -> Config {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap()
}

/// A client with the administrator's rights.
pub async fn admin() -> Client {
    Client::try_from(config(server()).await).unwrap()
}

/// A client that shows this token.
pub async fn client_with(token: String) -> Client {
    let mut config = config(server()).await;
    config.auth_info.token = Some(token.into());
    Client::try_from(config).unwrap()
}

/// A token of a service account of the release, bound to an object or to none.
pub async fn token(account: &str, bound_to: Option<BoundObjectReference>) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin().await, NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            bound_object_ref: bound_to,
            ..Default::default()
        },
        ..Default::default()
    };
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .unwrap();
    answer.status.unwrap().token
}

/// A client with the token that the agent on this node has; the Node is made if need be.
pub async fn agent_of(node: &str) -> Client {
    let nodes: Api<Node> = Api::all(admin().await);
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
    let made = nodes
        .patch(node, &PatchParams::apply("test"), &Patch::Apply(object))
        .await
        .unwrap();
    let bound_to = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.into()),
        uid: made.metadata.uid,
    };
    client_with(token(AGENT, Some(bound_to)).await).await
}

/// A policy to apply.
pub fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressNATPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A policy's status to apply.
pub fn policy_status(status: Value) -> Value {
    json!({"apiVersion": "egressnat.io/v1alpha1", "kind": "EgressNATPolicy", "status": status})
}

/// A plan to apply, as the operator does it.
pub fn plan(node: &str, spec: Value) -> Patch<Value> {
    Patch::Apply(json!({
        "apiVersion": "egressnat.io/v1alpha1",
        "kind": "EgressPlan",
        "metadata": {"name": node},
        "spec": spec,
    }))
}

/// A plan's status to apply, as an agent does it.
pub fn plan_status(status: Value) -> Patch<Value> {
    Patch::Apply(json!({"apiVersion": "egressnat.io/v1alpha1", "kind": "EgressPlan", "status": status}))
}

/// A condition of this type, status and reason.
pub fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
    })
}
