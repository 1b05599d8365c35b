//! From the API server's objects to the values of [`crate::world`].
//!
//! A text in an object of Kubernetes that is no address is left out: the API server has checked it, and
//! there is nobody to tell.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use egressnat_crds::selector::Labels;
use egressnat_crds::{EgressNATPolicy, EgressNATPolicyStatus, EgressPlan};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node as RawNode};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use serde_json::{Value, from_value};

use crate::store::{Change, Delta};
use crate::valid::{InvalidSpec, ValidPolicy};
use crate::wire::WirePod;
use crate::world::{ExistingPlan, Node, Pod, Policy, PolicySpec, STARTUP_TAINT};

/// What a watch says of an object that was made or changed, by its kind. `None` for a kind that nobody watches; an
/// error for an object that is not what its kind says.
pub fn change(object: Value) -> Result<Option<Change>, serde_json::Error> {
    let key = key(&object);
    Ok(Some(match object["kind"].as_str() {
        Some("EgressNATPolicy") => Change::Policies(Delta::Set(key, policy(from_value(object)?))),
        Some("Pod") => Change::Pods(Delta::Set(key, pod(from_value(object)?))),
        Some("Node") => Change::Nodes(Delta::Set(key, node(from_value(object)?))),
        Some("Namespace") => Change::Namespaces(Delta::Set(key, namespace(from_value(object)?))),
        Some("ServiceCIDR") => Change::ServiceCidrs(Delta::Set(key, service_cidr(from_value(object)?))),
        Some("EndpointSlice") => Change::ApiServers(Delta::Set(key, endpoints(from_value(object)?))),
        Some("EgressPlan") => Change::Plans(Delta::Set(key, plan(from_value(object)?))),
        _ => return Ok(None),
    }))
}

/// Where an object stands in the maps of [`World`](crate::world::World): `name`, or `namespace/name`.
pub fn key(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// A policy without history: see [`Policy::after`].
pub fn policy(raw: DeserializeGuard<EgressNATPolicy>) -> Policy {
    let (metadata, spec, status) = match raw.0 {
        Ok(policy) => (
            policy.metadata,
            Ok(policy.spec),
            policy.status.unwrap_or_default(),
        ),
        Err(invalid) => (
            invalid.metadata,
            Err(InvalidSpec::Unreadable(invalid.error)),
            Default::default(),
        ),
    };
    let spec = match spec {
        Err(error) => PolicySpec::Refused(error),
        Ok(spec) => match ValidPolicy::parse(&spec) {
            Ok(valid) => PolicySpec::Valid(valid),
            Err(error) if was_in_force(&status) => PolicySpec::Guarded {
                guard: ValidPolicy::guard(&spec),
                error,
            },
            Err(error) => PolicySpec::Refused(error),
        },
    };
    Policy {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        created: created(&metadata),
        spec,
        status,
    }
}

/// A pod.
pub fn pod(raw: WirePod) -> Pod {
    let WirePod {
        metadata,
        spec,
        status,
    } = raw;
    Pod {
        created: created(&metadata),
        deleting: metadata.deletion_timestamp.is_some(),
        uid: metadata.uid.unwrap_or_default(),
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        labels: Arc::new(metadata.labels.unwrap_or_default()),
        node: spec.node_name.filter(|n| !n.is_empty()),
        ips: Vec::from_iter(parse_all(status.pod_ips.iter().map(|p| p.ip.as_str()))),
        host_network: spec.host_network,
        ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
    }
}

/// A node.
pub fn node(raw: RawNode) -> Node {
    let spec = raw.spec.unwrap_or_default();
    let status = raw.status.unwrap_or_default();
    let pod_cidrs = spec
        .pod_cidrs
        .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.iter().filter(|a| a.type_ == "InternalIP");
    let conditions = status.conditions.unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    Node {
        uid: raw.metadata.uid.unwrap_or_default(),
        labels: raw.metadata.labels.unwrap_or_default(),
        pod_cidrs: pod_cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
        internal_ips: internal.filter_map(|a| a.address.parse().ok()).collect(),
        addresses: parse_all(addresses.iter().map(|a| a.address.as_str())),
        ready: conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
        startup_taint: taints.iter().position(|taint| taint.key == STARTUP_TAINT),
    }
}

/// A namespace's labels.
pub fn namespace(raw: Namespace) -> Labels {
    raw.metadata.labels.unwrap_or_default()
}

/// The ranges of a ServiceCIDR.
pub fn service_cidr(raw: ServiceCIDR) -> Vec<IpNet> {
    let cidrs = raw.spec.and_then(|s| s.cidrs).unwrap_or_default();
    cidrs.iter().filter_map(|c| c.parse().ok()).collect()
}

/// The addresses of an EndpointSlice.
pub fn endpoints(raw: EndpointSlice) -> BTreeSet<IpAddr> {
    let addresses = raw.endpoints.iter().flat_map(|e| &e.addresses);
    parse_all(addresses.map(String::as_str))
}

/// A plan. One that cannot be read holds nothing, and so is written again.
pub fn plan(raw: DeserializeGuard<EgressPlan>) -> ExistingPlan {
    let owner = |metadata: &ObjectMeta| {
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().find(|o| o.kind == "Node").map(|o| o.uid.clone())
    };
    match raw.0 {
        Ok(plan) => ExistingPlan {
            uid: plan.uid().unwrap_or_default(),
            owner: owner(&plan.metadata),
            generation: plan.metadata.generation.unwrap_or_default(),
            spec: plan.spec,
            status: plan.status.unwrap_or_default(),
        },
        Err(invalid) => ExistingPlan {
            uid: invalid.metadata.uid.clone().unwrap_or_default(),
            owner: owner(&invalid.metadata),
            generation: invalid.metadata.generation.unwrap_or_default(),
            ..ExistingPlan::default()
        },
    }
}

/// Only a policy in force has ids.
fn was_in_force(status: &EgressNATPolicyStatus) -> bool {
    status.id.is_some() || status.gateways.iter().any(|g| g.id.is_some())
}

fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |t| t.0)
}

fn parse_all<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<IpAddr> {
    texts.filter_map(|t| t.parse().ok()).collect()
}
