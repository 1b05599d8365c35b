//! Reading the cluster.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use egressnat_operator::convert;
use egressnat_operator::wire::WirePod;
use egressnat_operator::world::World;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ApiResource, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{DeserializeGuard, DynamicObject, GroupVersionKind, TypeMeta};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cli::ClusterArgs;
use crate::documents::Document;
use crate::error::Error;
use crate::migrate::SOURCES;
use crate::services;
use crate::snapshot::Snapshot;

/// Objects of one answer: as many as kubectl asks for.
const PAGE: u32 = 500;

/// Labels of the EndpointSlices of the API server, in namespace `default`.
const API_SERVER_SLICES: &str = "kubernetes.io/service-name=kubernetes";

/// A way to the cluster, found as kubectl does it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// The namespace asked for, or the context's.
    pub namespace: String,
}

impl Cluster {
    /// Reads the configuration. Asks nothing of the API server yet.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Error> {
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(Error::Kubeconfig)?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(Error::Kubeconfig)?
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(Error::Kubeconfig)?,
            None => Config::infer().await.map_err(Error::NoCluster)?,
        };
        if let Some(user) = &args.as_user {
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_groups = Some(args.as_group.clone());
        } else if !args.as_group.is_empty() {
            return Err(Error::GroupWithoutUser);
        }
        let namespace = args
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(Error::Client)?;
        Ok(Self { client, namespace })
    }

    /// Everything that the planner looks at.
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), "default");
        let (policies, pods, nodes, namespaces, services, ranges, slices, plans) = tokio::try_join!(
            list(
                "EgressNATPolicies",
                self.all::<DeserializeGuard<EgressNATPolicy>>(),
                all()
            ),
            list("Pods", self.all::<WirePod>(), all()),
            list("Nodes", self.all::<Node>(), all()),
            list("Namespaces", self.all::<Namespace>(), all()),
            list("Services", self.all::<Service>(), all()),
            list("ServiceCIDRs", self.all::<ServiceCIDR>(), all()),
            list("EndpointSlices", slices, all().labels(API_SERVER_SLICES)),
            list("EgressPlans", self.all::<DeserializeGuard<EgressPlan>>(), all()),
        )?;
        let specs = policies
            .iter()
            .filter_map(|p| Some((p.name_any(), p.0.as_ref().ok()?.spec.clone())))
            .collect::<BTreeMap<_, _>>();
        let world = World {
            policies: named(policies, convert::policy).collect(),
            pods: named(pods, |pod| Arc::new(convert::pod(pod))).collect(),
            nodes: named(nodes, convert::node).collect(),
            namespaces: named(namespaces, convert::namespace).collect(),
            service_cidrs: named(ranges, convert::service_cidr).collect(),
            api_servers: named(slices, convert::endpoints).collect(),
            plans: named(plans, convert::plan).collect(),
            ..World::default()
        };
        let exposed = services.iter().flat_map(services::exposed).collect();
        Ok(Snapshot::new(world, specs, exposed))
    }

    /// The policies and plans, and nothing else.
    pub async fn policies_and_plans(&self) -> Result<World, Error> {
        let (policies, plans) = tokio::try_join!(
            list(
                "EgressNATPolicies",
                self.all::<DeserializeGuard<EgressNATPolicy>>(),
                all()
            ),
            list("EgressPlans", self.all::<DeserializeGuard<EgressPlan>>(), all()),
        )?;
        Ok(World {
            policies: named(policies, convert::policy).collect(),
            plans: named(plans, convert::plan).collect(),
            ..World::default()
        })
    }

    /// The policies of other egress gateways, of the kinds that the cluster has.
    pub async fn foreign_policies(&self) -> Result<Vec<Document>, Error> {
        let mut documents = Vec::new();
        for source in &SOURCES {
            let kind = GroupVersionKind::gvk(source.group, source.version, source.kind);
            let resource = ApiResource::from_gvk_with_plural(&kind, source.plural);
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
            let objects = match list(source.kind, api, all()).await {
                Err(Error::NotInstalled(_)) => continue,
                objects => objects?,
            };
            documents.extend(objects.into_iter().map(|mut object| {
                // The items of a list do not say what they are.
                object.types = Some(TypeMeta {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                });
                Document {
                    place: "the cluster".into(),
                    object: serde_json::json!(object),
                }
            }));
        }
        Ok(documents)
    }

    /// All objects of a kind.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }
}

fn all() -> ListParams {
    ListParams::default().limit(PAGE)
}

/// The values of the planner's world, by `name` or `namespace/name`.
fn named<K: Resource, V>(objects: Vec<K>, convert: fn(K) -> V) -> impl Iterator<Item = (String, V)> {
    objects.into_iter().map(move |object| {
        let key = match object.namespace() {
            Some(namespace) => format!("{namespace}/{}", object.name_any()),
            None => object.name_any(),
        };
        (key, convert(object))
    })
}

/// All objects of a kind, page by page.
async fn list<K>(kind: &'static str, api: Api<K>, mut params: ListParams) -> Result<Vec<K>, Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut objects = Vec::new();
    loop {
        let page = match api.list(&params).await {
            // Before Kubernetes 1.33 there is no such kind; then the operator's command line says the ranges.
            Err(kube::Error::Api(s)) if s.code == 404 && kind == "ServiceCIDRs" => return Ok(objects),
            Err(kube::Error::Api(s)) if s.code == 404 => return Err(Error::NotInstalled(kind)),
            Err(kube::Error::Api(s)) if s.code == 403 => {
                let message = s.message.clone();
                return Err(Error::Forbidden { kind, message });
            }
            Err(source) => return Err(Error::List { kind, source }),
            Ok(page) => page,
        };
        objects.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|t| !t.is_empty());
        if params.continue_token.is_none() {
            return Ok(objects);
        }
    }
}
