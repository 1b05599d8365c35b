//! etcd, API server, controller manager and scheduler: processes in the control-plane node's namespace.

use std::time::Duration;

use crate::{
    error::Result,
    kubectl::Kubectl,
    launch::Mounts,
    pki,
    site::{API_PORT, CONTROL_PLANE, SERVICE_RANGES, Service, Site},
    wait,
};

const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Names of the services, in the order of their start.
pub const SERVICES: [&str; 4] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];

/// Starts etcd and the API server.
///
/// # Errors
/// When one cannot be started.
pub fn start_api_server(site: &Site) -> Result<()> {
    start(site, "etcd", etcd_args(site))?;
    start(site, "kube-apiserver", api_server_args(site))
}

/// Starts the controller manager and the scheduler; the API server must be ready.
///
/// # Errors
/// When one cannot be started.
pub fn start_controllers(site: &Site) -> Result<()> {
    start(site, "kube-controller-manager", controller_manager_args(site))?;
    start(site, "kube-scheduler", scheduler_args(site))
}

/// Waits until the API server says that it is ready.
///
/// # Errors
/// After a minute; or at once when the API server has ended.
pub fn wait_ready(site: &Site, kubectl: &Kubectl) -> Result<()> {
    let service = site.service("kube-apiserver");
    wait::until(
        &format!("a ready API server (see {})", service.log().display()),
        READY_DEADLINE,
        || kubectl.run(["get", "--raw", "/readyz"]),
    )?;
    Ok(())
}

fn start(site: &Site, name: &str, args: Vec<String>) -> Result<()> {
    let service: Service = site.service(name);
    service.start(
        Some(site.netns(CONTROL_PLANE.name)),
        Mounts::Shared,
        &Site::program(name),
        args,
    )
}

fn etcd_args(site: &Site) -> Vec<String> {
    vec![
        format!("--data-dir={}", site.path("etcd").display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        "--listen-peer-urls=http://127.0.0.1:2380".into(),
        // The data is gone with the cluster anyway, and a slow disk is the first thing that makes etcd shaky.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server_args(site: &Site) -> Vec<String> {
    let pki = |name: &str| pki::path(site, name).display().to_string();
    let (services_v4, services_v6) = SERVICE_RANGES;
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", CONTROL_PLANE.v4),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--token-auth-file={}", pki("tokens.csv")),
        format!(
            "--kubelet-client-certificate={}",
            pki("apiserver-kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        format!("--service-cluster-ip-range={services_v4},{services_v6}"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        "--profiling=false".into(),
    ]
}

fn controller_manager_args(site: &Site) -> Vec<String> {
    let pki = |name: &str| pki::path(site, name).display().to_string();
    vec![
        format!("--kubeconfig={}", pki("kube-controller-manager.kubeconfig")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("sa.key")),
        "--use-service-account-credentials=true".into(),
        // The default of 20 a second is what a start of all controllers would mostly wait for.
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
    ]
}

fn scheduler_args(site: &Site) -> Vec<String> {
    vec![
        format!(
            "--kubeconfig={}",
            pki::kubeconfig_path(site, "kube-scheduler").display()
        ),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
    ]
}
