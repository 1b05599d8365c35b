//! Addresses that Services have beside those of the cluster's ranges. kube-proxy translates packets to their ports
//! before a policy is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use crate::words;

/// An address of a Service, and the ports that are translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The address.
    pub address: IpAddr,
    /// The Service, `namespace/name`.
    pub service: String,
    /// What it is to the Service.
    pub kind: Kind,
    /// Of any protocol.
    pub ports: BTreeSet<u16>,
}

/// What an address is to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of `status.loadBalancer.ingress`.
    Ingress,
    /// One of `spec.externalIPs`.
    External,
}

/// The addresses of a Service that kube-proxy translates. Not those of a load balancer that wants to see the packets
/// itself (`ipMode: Proxy`), and none of a Service without an address of the cluster.
pub fn exposed(service: &Service) -> Vec<Exposed> {
    let spec = service.spec.clone().unwrap_or_default();
    let in_cluster = spec.cluster_ip.is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
    if !in_cluster {
        return Vec::new();
    }
    let ports = spec.ports.into_iter().flatten();
    let ports: BTreeSet<u16> = ports.filter_map(|p| u16::try_from(p.port).ok()).collect();
    let name = format!(
        "{}/{}",
        service.namespace().unwrap_or_default(),
        service.name_any()
    );
    let balancer = service.status.clone().unwrap_or_default().load_balancer;
    let ingress = balancer.and_then(|b| b.ingress).into_iter().flatten();
    let ingress = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    let ingress = ingress.filter_map(|i| Some((i.ip?, Kind::Ingress)));
    let external = spec.external_ips.into_iter().flatten();
    let all = ingress.chain(external.map(|ip| (ip, Kind::External)));
    all.filter_map(|(ip, kind)| {
        Some(Exposed {
            address: ip.parse().ok()?,
            service: name.clone(),
            kind,
            ports: ports.clone(),
        })
    })
    .collect()
}

impl Exposed {
    /// Whether packets to this address, and port where one is given, are translated.
    pub fn takes(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.address == address && port.is_none_or(|port| self.ports.contains(&port))
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Ingress => "ingress address",
            Kind::External => "external address",
        };
        let ports: Vec<&u16> = self.ports.iter().collect();
        let plural = if ports.len() == 1 { "" } else { "s" };
        write!(
            f,
            "it is the {kind} of Service {}, whose port{plural} {} kube-proxy translates before a policy is asked",
            self.service,
            words::join(&ports)
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn addresses(spec: Value, ingress: Value) -> Vec<String> {
        let service = json!({
            "metadata": {"namespace": "a", "name": "b"},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let exposed = exposed(&serde_json::from_value(service).unwrap());
        exposed.iter().map(|e| e.address.to_string()).collect()
    }

    #[test]
    fn what_kube_proxy_leaves_alone_is_no_address() {
        let spec = |address: &str| json!({"clusterIP": address, "externalIPs": ["192.0.2.1"], "ports": [{"port": 80}]});
        let ingress = json!([
            {"ip": "192.0.2.2"},
            {"ip": "192.0.2.3", "ipMode": "VIP"},
            {"ip": "192.0.2.4", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"},
        ]);
        let usual = addresses(spec("10.96.0.1"), ingress.clone());
        assert_eq!(usual, ["192.0.2.2", "192.0.2.3", "192.0.2.1"]);
        assert_eq!(addresses(spec("None"), ingress), [""; 0]);
    }
}
