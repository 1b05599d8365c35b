//! Changes as they are sent: to the API server, and to the nodes themselves.

use std::{fmt::Debug, net::IpAddr, sync::Mutex};

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{
    change::Change,
    model::Policy,
    place::{EGRESS, GATEWAY_LABEL, LABEL, NAMESPACES, OUTSIDE},
    trouble,
    world::{Pod as HuntPod, World, lock},
};
use crate::{
    cluster::Cluster,
    error::{Error, Result},
    images::SENDER,
    site::{NODE_PREFIX, NODES},
};

/// Who writes.
const MANAGER: &str = "hunt";

/// The policy that selects nothing.
const BARRIER: &str = "hunt-barrier";

/// How a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grace {
    /// With the pod's own grace period.
    Own,
    /// With a second, as `kubectl delete --now` does it.
    Now,
    /// At once, the kubelet not asked: grace 0, as `kubectl delete --force` does it.
    Forced,
}

/// The API server of a cluster.
#[derive(Clone)]
pub struct Server {
    client: Client,
}

impl Server {
    /// As the cluster's administrator.
    ///
    /// # Errors
    /// When the kubeconfig does not lead to a client.
    pub async fn of(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client().await?;
        Ok(Self { client })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes the hunt's namespaces, and gives them and the nodes their first labels.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn prepare(&self, world: &World) -> Result<()> {
        for (name, label) in NAMESPACES.iter().zip(&world.namespaces) {
            self.apply::<Namespace>(
                &self.all(),
                name,
                json!({"metadata": {"labels": {LABEL: label.last()}}}),
            )
            .await?;
        }
        for node in 0..NODES.len() {
            self.label_node(node, node_labels(world, node)).await?;
        }
        Ok(())
    }

    /// Sends what the history says was changed.
    ///
    /// # Errors
    /// When the API server or a node refuses.
    pub async fn send(&self, cluster: &Cluster, world: &Mutex<World>, change: &Change) -> Result<()> {
        match change {
            Change::Policy(name, Some(policy)) => {
                self.apply::<EgressNATPolicy>(&self.all(), name, policy_fields(policy))
                    .await
            }
            Change::Policy(name, None) => {
                let policies: Api<EgressNATPolicy> = self.all();
                found(policies.delete(name, &DeleteParams::default()).await)
            }
            Change::Pod(port, label) => {
                let (namespace, name) = {
                    let pod = &lock(world).pods[port];
                    (pod.namespace, pod.name.clone())
                };
                let fields = Patch::Merge(json!({"metadata": {"labels": {LABEL: label}}}));
                let pods: Api<Pod> = self.of_namespace(namespace);
                found(pods.patch(&name, &PatchParams::default(), &fields).await)
            }
            Change::Namespace(namespace, label) => {
                let fields = json!({"metadata": {"labels": {LABEL: label}}});
                self.apply::<Namespace>(&self.all(), NAMESPACES[*namespace], fields)
                    .await
            }
            Change::Node(node, _) | Change::Gateway(node, _) => {
                let labels = node_labels(&lock(world), *node);
                self.label_node(*node, labels).await
            }
            Change::Addresses(pair, node) => block_in_place(|| move_addresses(cluster, EGRESS[*pair], *node)),
            Change::Trouble(kind) => block_in_place(|| trouble::make(cluster, *kind)),
        }
    }

    /// Edits a policy that selects nothing. The operator learns of policies in order: when it has read this one, it
    /// knows of all that was sent before, what was deleted included.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn send_barrier(&self, number: usize) -> Result<()> {
        let nowhere = json!({"matchLabels": {LABEL: "nowhere"}});
        let spec = json!({
            "priority": number,
            "selectors": [{"namespaceSelector": nowhere}],
            "egressSourceIPs": EGRESS[0],
        });
        self.apply::<EgressNATPolicy>(&self.all(), BARRIER, json!({"spec": spec}))
            .await
    }

    /// Creates a pod; returns its uid.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create_pod(&self, port: u16, pod: &HuntPod, obeys: bool) -> Result<String> {
        let pods: Api<Pod> = self.of_namespace(pod.namespace);
        let object = decode(pod_object(port, pod, obeys))?;
        let created: Pod = pods
            .create(&PostParams::default(), &object)
            .await
            .map_err(state)?;
        Ok(created.metadata.uid.unwrap_or_default())
    }

    /// Deletes a pod; one that is gone is no error.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_pod(&self, namespace: usize, name: &str, grace: Grace) -> Result<()> {
        let pods: Api<Pod> = self.of_namespace(namespace);
        let params = match grace {
            Grace::Own => DeleteParams::default(),
            Grace::Now => DeleteParams::default().grace_period(1),
            Grace::Forced => DeleteParams::default().grace_period(0),
        };
        found(pods.delete(name, &params).await)
    }

    /// Every policy, and every node's plan.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn shown(&self) -> Result<(Vec<EgressNATPolicy>, Vec<EgressPlan>)> {
        let (policies, plans) = (self.all::<EgressNATPolicy>(), self.all::<EgressPlan>());
        let all = ListParams::default();
        let shown = futures::try_join!(policies.list(&all), plans.list(&all)).map_err(state)?;
        Ok((shown.0.items, shown.1.items))
    }

    async fn label_node(&self, node: usize, labels: Value) -> Result<()> {
        let fields = json!({"metadata": {"labels": labels}});
        self.apply::<Node>(&self.all(), NODES[node].name, fields).await
    }

    async fn apply<K>(&self, api: &Api<K>, name: &str, mut fields: Value) -> Result<()>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        fields["apiVersion"] = K::api_version(&()).into();
        fields["kind"] = K::kind(&()).into();
        fields["metadata"]["name"] = name.into();
        let params = PatchParams::apply(MANAGER).force();
        api.patch(name, &params, &Patch::Apply(fields))
            .await
            .map_err(state)?;
        Ok(())
    }

    fn all<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn of_namespace<K>(&self, namespace: usize) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACES[namespace])
    }
}

/// Gives a node a pair of egress addresses, and takes it from the others. Deprecated is what keeps the CNI's
/// masquerade from choosing the IPv6 address; IPv4's is secondary.
///
/// # Errors
/// When the kernel refuses.
pub fn move_addresses(cluster: &Cluster, [v4, v6]: [IpAddr; 2], holder: usize) -> Result<()> {
    let (v4_len, v6_len) = NODE_PREFIX;
    let (v4, v6) = (
        format!("{v4}/{v4_len} dev eth0"),
        format!("{v6}/{v6_len} dev eth0"),
    );
    for (index, node) in cluster.nodes().iter().enumerate() {
        if index != holder {
            // Not there is as good.
            let _ = node.netns()?.ip(&format!("addr del {v4}\naddr del {v6}"));
        }
    }
    cluster.nodes()[holder].netns()?.ip(&format!(
        "addr replace {v4}\naddr replace {v6} nodad preferred_lft 0"
    ))
}

fn node_labels(world: &World, node: usize) -> Value {
    let gateway = if world.gateways[node] { "yes" } else { "no" };
    json!({LABEL: world.nodes[node].last(), GATEWAY_LABEL: gateway})
}

fn policy_fields(policy: &Policy) -> Value {
    let Policy {
        priority,
        selector,
        excluded,
        egress,
        by_label,
    } = policy;
    let mut entry = json!({});
    for (name, label) in [
        ("podSelector", selector.pod),
        ("namespaceSelector", selector.namespace),
        ("nodeSelector", selector.node),
    ] {
        if let Some(label) = label {
            entry[name] = json!({"matchLabels": {LABEL: label}});
        }
    }
    let excluded = excluded.map_or(Vec::new(), |place| {
        OUTSIDE[place]
            .map(|host| format!("{host}/{}", if host.is_ipv4() { 32 } else { 128 }))
            .to_vec()
    });
    let mut spec = json!({"priority": priority, "selectors": [entry], "excludedCIDRs": excluded});
    if *by_label {
        spec["egressGateway"] = json!({
            "nodeSelector": {"matchLabels": {GATEWAY_LABEL: "yes"}},
            "egressIPs": EGRESS[*egress],
        });
    } else {
        spec["egressSourceIPs"] = json!(EGRESS[*egress]);
    }
    json!({"spec": spec})
}

fn pod_object(port: u16, pod: &HuntPod, obeys: bool) -> Value {
    let mut args = vec![
        pod.name.clone(),
        port.to_string(),
        if obeys { "obey" } else { "ignore" }.into(),
    ];
    args.extend(OUTSIDE.iter().flatten().map(IpAddr::to_string));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "labels": {LABEL: pod.label.last()}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": NODES[pod.node].name},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 2,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "sender",
                "image": SENDER,
                "imagePullPolicy": "Never",
                "args": args,
            }],
        },
    })
}

fn decode<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(state)
}

/// What is gone already was deleted by somebody else.
fn found<T>(answer: kube::Result<T>) -> Result<()> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()).map_err(state),
    }
}

fn state(error: impl std::fmt::Display) -> Error {
    Error::State(format!("failed to ask the API server: {error}"))
}
