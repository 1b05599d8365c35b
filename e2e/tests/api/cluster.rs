//! An API server with the chart installed, and clients of it.

use std::{fs, path::PathBuf, sync::OnceLock, time::Duration};

use egressnat_e2e::{api_server::ApiServer, command, error::Error, wait};
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

use super::support::*;

/// An API server with the chart installed.
pub struct Cluster {
    server: ApiServer,
}

/// The one of all tests that do not get in each other's way.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

impl Cluster {
    /// Starts an API server and installs the chart as a user does it. Nothing runs the pods here, so nothing
    /// waits for them.
    pub fn start() -> Self {
        let server = ApiServer::start().unwrap_or_else(|error| panic!("{error}"));
        let mut helm = helm();
        helm.args(["install", RELEASE, &chart()]);
        helm.args(["--namespace", NAMESPACE, "--create-namespace"]);
        command::output(helm.env("KUBECONFIG", server.kubeconfig())).unwrap();
        let crds = [
            "crd/egressnatpolicies.egressnat.io",
            "crd/egressplans.egressnat.io",
        ];
        wait::until("both CRDs established", Duration::from_secs(30), || {
            command::output(
                server
                    .kubectl()
                    .args(["wait", "--for=condition=Established"])
                    .args(crds),
            )
        })
        .unwrap();
        Self { server }
    }

    /// `kubectl` as the administrator; returns what it prints.
    pub fn kubectl(&self, args: &[&str], input: &str) -> String {
        command::output_with_input(self.server.kubectl().args(args), input).unwrap()
    }

    /// The same, which may fail.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, Error> {
        command::output(self.server.kubectl().args(args))
    }

    /// The administrator's configuration.
    pub async fn config(&self) -> Config {
        let kubeconfig = Kubeconfig::read_from(self.server.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap()
    }

    /// A client with the administrator's rights.
    pub async fn admin(&self) -> Client {
        Client::try_from(self.config().await).unwrap()
    }

    /// A configuration that shows this token.
    pub async fn config_with(&self, token: String) -> Config {
        let mut config = self.config().await;
        config.auth_info.token = Some(token.into());
        config
    }

    /// A client that shows this token.
    pub async fn client_with(&self, token: String) -> Client {
        Client::try_from(self.config_with(token).await).unwrap()
    }

    /// A client with an unbound token of a service account of the release.
    pub async fn client_of(&self, account: &str) -> Client {
        self.client_with(self.token(account, None).await).await
    }

    /// A token of a service account of the release, bound to an object or to none.
    pub async fn token(&self, account: &str, bound_to: Option<BoundObjectReference>) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await, NAMESPACE);
        let spec = TokenRequestSpec {
            bound_object_ref: bound_to,
            ..Default::default()
        };
        let request = TokenRequest {
            spec,
            ..Default::default()
        };
        let params = PostParams::default();
        let made = accounts.create_token_request(account, &params, &request);
        made.await.unwrap().status.unwrap().token
    }

    /// A client with a token such as the agent on this node has; the Node is made if need be.
    pub async fn agent_of(&self, node: &str) -> Client {
        self.client_with(self.agent_token(node).await).await
    }

    /// A kubeconfig with a token such as the agent on this node has.
    pub async fn agent_kubeconfig(&self, node: &str) -> PathBuf {
        let own = self.server.kubeconfig();
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&own).unwrap()).unwrap();
        config["users"][0]["user"]["token"] = json!(self.agent_token(node).await);
        let path = own.with_file_name(format!("agent-{node}"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    async fn agent_token(&self, node: &str) -> String {
        let nodes: Api<Node> = Api::all(self.admin().await);
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        let apply = PatchParams::apply("agent-of");
        let made = nodes.patch(node, &apply, &Patch::Apply(object)).await.unwrap();
        let bound_to = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.into()),
            uid: made.metadata.uid,
        };
        self.token(AGENT, Some(bound_to)).await
    }
}
