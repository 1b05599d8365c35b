//! The chart under other values than its own: what it renders, what it refuses, what the API server and its
//! pod security admission say of it.

use std::collections::BTreeSet;

use egressnat_agent::cni::standing::MARKER_VOLUME;
use egressnat_e2e::{command, site::Site};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Namespace, Pod, PodTemplateSpec, ServiceAccount},
};
use kube::{
    Api, Client, Error,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::support::*;

#[test]
fn lint_finds_nothing() {
    command::output(helm().args(["lint", "--strict", &chart()])).unwrap();
}

#[test]
fn an_image_is_named_by_registry_tag_and_digest() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let by_digest = format!("agent.image.digest={digest}");
    for (values, image) in [
        (&[][..], "egressnat/egressnat-agent:0.1.0".to_owned()),
        (
            &["agent.image.registry=r.example:5000/"],
            "r.example:5000/egressnat/egressnat-agent:0.1.0".into(),
        ),
        (
            &["agent.image.repository=mine/agent", "agent.image.tag=dev"],
            "mine/agent:dev".into(),
        ),
        (&[&by_digest], format!("egressnat/egressnat-agent:0.1.0@{digest}")),
    ] {
        let agents: DaemonSet = typed(&render(values).unwrap(), "DaemonSet");
        assert_eq!(
            agents.spec.unwrap().template.spec.unwrap().containers[0].image,
            Some(image)
        );
    }
}

#[test]
fn the_api_servers_address_reaches_both_components() {
    let values = ["k8sServiceHost=192.0.2.1", "k8sServicePort=6444"];
    let objects = render(&values).unwrap();
    for kind in ["Deployment", "DaemonSet"] {
        let env = &of_kind(&objects, kind)[0]["spec"]["template"]["spec"]["containers"][0]["env"];
        let env = env.as_array().unwrap();
        assert!(
            env.contains(&json!({"name": "KUBERNETES_SERVICE_HOST", "value": "192.0.2.1"})),
            "{kind}"
        );
        assert!(
            env.contains(&json!({"name": "KUBERNETES_SERVICE_PORT", "value": "6444"})),
            "{kind}"
        );
    }
    assert!(
        !json!(render(&[]).unwrap())
            .to_string()
            .contains("KUBERNETES_SERVICE")
    );
}

/// The kubelet makes no folder for a volume that no container mounts, and the plugin looks for one.
#[test]
fn every_volume_of_the_agents_is_mounted() {
    let agents: DaemonSet = typed(&render(&[]).unwrap(), "DaemonSet");
    let pod = agents.spec.unwrap().template.spec.unwrap();
    let mounts = pod.containers[0].volume_mounts.iter().flatten();
    let mounted: BTreeSet<String> = mounts.map(|mount| mount.name.clone()).collect();
    let volumes: BTreeSet<String> = pod
        .volumes
        .unwrap()
        .into_iter()
        .map(|volume| volume.name)
        .collect();
    assert_eq!(mounted, volumes);
    assert!(volumes.contains(MARKER_VOLUME));
}

#[test]
fn numbers_and_ranges_become_flags() {
    let values = [
        "tunnel.port=5771",
        "tunnel.vni=16777215",
        "routing.markMask=0x00fc0000",
        "routing.rulePriority=800",
        "routing.tableBase=8000",
        "agent.httpPort=9741",
        "bindAddress=[::]",
        "clusterCIDRs={10.244.0.0/16,fd00:10:244::/56}",
        "serviceCIDRs={10.96.0.0/12}",
        "masquerade.enabled=true",
        "masquerade.nonMasqueradeCIDRs={192.0.2.0/24,fd00::/8}",
        "masquerade.linkLocal=true",
        "startGate.timeoutSeconds=8",
        "startGate.onTimeout=Allow",
        "startGate.exemptNamespaces={kube-system,dns}",
        "startGate.cniBinDir=/usr/lib/cni",
        "startGate.cniConfDir=/etc/net.d",
        "startGate.cniCacheDir=/data/cni",
        "startGate.kubeletDir=/data/kubelet",
        "agent.checkSources=false",
    ];
    let objects = render(&values).unwrap();
    let args =
        |kind: &str| of_kind(&objects, kind)[0]["spec"]["template"]["spec"]["containers"][0]["args"].clone();
    assert_eq!(
        args("DaemonSet"),
        json!([
            "--http-address=[::]:9741",
            "--log-format=json",
            "--log-level=info",
            "--tunnel-port=5771",
            "--tunnel-vni=16777215",
            "--routing-mark-mask=0x00fc0000",
            "--rule-priority=800",
            "--route-table-base=8000",
            "--proc-sys-net=/host/proc/sys/net",
            "--check-sources=false",
            "--gate",
            "--gate-timeout-seconds=8",
            "--gate-on-timeout=Allow",
            "--gate-exempt-namespace=kube-system,dns,egressnat-system",
            "--gate-cni-programs=/usr/lib/cni",
            "--gate-cni-configurations=/etc/net.d",
            "--gate-cni-cache=/data/cni",
            "--gate-kubelet-pods=/data/kubelet/pods",
        ])
    );
    assert_eq!(
        args("Deployment"),
        json!([
            "--http-address=[::]:8080",
            "--log-format=json",
            "--log-level=info",
            "--cluster-cidr=10.244.0.0/16",
            "--cluster-cidr=fd00:10:244::/56",
            "--service-cidr=10.96.0.0/12",
            "--start-gate",
            "--masquerade",
            "--non-masquerade-cidr=192.0.2.0/24",
            "--non-masquerade-cidr=fd00::/8",
            "--masquerade-link-local",
        ])
    );
}

#[test]
fn the_masquerade_is_off_until_it_is_asked_for() {
    let args = |values: &[&str]| {
        let objects = render(values).unwrap();
        of_kind(&objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"].to_string()
    };
    let more = "masquerade.nonMasqueradeCIDRs={192.0.2.0/24}";
    assert!(!args(&[]).contains("masquerade"));
    assert!(!args(&[more, "masquerade.linkLocal=true"]).contains("masquerade"));
    let on = args(&[more, "masquerade.enabled=true"]);
    assert!(
        on.contains("--masquerade\"") && on.contains("192.0.2.0/24"),
        "{on}"
    );
    assert!(!on.contains("--masquerade-link-local"), "{on}");
    render(&["masquerade.enabled=yes"]).unwrap_err();
}

#[test]
fn the_documented_masquerade_is_one_that_the_chart_takes() {
    let page = std::fs::read_to_string(Site::root().join("docs/masquerade.md")).unwrap();
    let example = page
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let example: Value = serde_yaml_ng::from_str(example.unwrap()).unwrap();
    let values = format!("masquerade={}", example["masquerade"]);
    let mut template = helm();
    template.args(["template", RELEASE, &chart(), "--set-json", &values]);
    let rendered = command::output(&mut template).unwrap();
    for flag in [
        "--masquerade\n",
        "--non-masquerade-cidr=10.0.0.0/8\n",
        "--non-masquerade-cidr=fd00::/8\n",
    ] {
        assert!(rendered.contains(flag), "no {flag:?}");
    }
}

#[test]
fn what_is_optional_appears_when_asked_for() {
    for (kind, values, count) in [
        ("PodDisruptionBudget", &["operator.replicas=1"][..], 0),
        ("PodDisruptionBudget", &["operator.replicas=2"], 1),
        ("Service", &[], 0),
        ("Service", &["metrics.enabled=true"], 2),
        ("ServiceMonitor", &["metrics.enabled=true"], 0),
        (
            "ServiceMonitor",
            &["metrics.enabled=true", "metrics.serviceMonitor.enabled=true"],
            2,
        ),
    ] {
        assert_eq!(
            of_kind(&render(values).unwrap(), kind).len(),
            count,
            "{kind} with {values:?}"
        );
    }
}

#[test]
fn a_value_that_means_nothing_is_refused() {
    for (value, says) in [
        ("agnet.httpPort=1", "additional properties 'agnet' not allowed"),
        ("agent.image.name=x", "additional properties 'name' not allowed"),
        ("agent.image.digest=latest", "/agent/image/digest"),
        ("agent.httpPort=70000", "/agent/httpPort"),
        ("logFormat=xml", "/logFormat"),
        ("tunnel.vni=16777216", "/tunnel/vni"),
        ("routing.markMask=all", "/routing/markMask"),
        ("routing.tableBase=254", "/routing/tableBase"),
        ("clusterCIDRs={10.244.0.0}", "/clusterCIDRs/0"),
        (
            "metrics.serviceMonitor.enabled=true",
            "metrics.serviceMonitor.enabled needs metrics.enabled",
        ),
    ] {
        let error = render(&[value]).expect_err(value).to_string();
        assert!(error.contains(says), "{value}: {error}");
    }
}

#[tokio::test]
async fn the_api_server_takes_every_object_as_it_is() {
    let values = [
        "operator.replicas=2",
        "metrics.enabled=true",
        "k8sServiceHost=192.0.2.1",
    ];
    let objects = render(&values).unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    // Somebody else's field manager, since the release is installed: nothing is written.
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f-",
    ];
    let taken = shared().kubectl(&apply, &list);
    assert_eq!(taken.lines().count(), objects.len(), "{taken}");
}

#[tokio::test]
async fn the_operators_pod_meets_the_restricted_pod_security_standard() {
    let client = shared().admin().await;
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    });
    let apply = PatchParams::apply("test");
    Api::<Namespace>::all(client.clone())
        .patch("restricted", &apply, &Patch::Apply(namespace))
        .await
        .unwrap();
    let objects = render(&[]).unwrap();
    let operator: Deployment = typed(&objects, "Deployment");
    let agents: DaemonSet = typed(&objects, "DaemonSet");
    dry_run(&client, OPERATOR, operator.spec.unwrap().template)
        .await
        .unwrap();
    let Err(Error::Api(status)) = dry_run(&client, AGENT, agents.spec.unwrap().template).await else {
        panic!("the agent's host network passed as restricted: nothing was checked");
    };
    assert!(
        status.message.contains("violates PodSecurity"),
        "{}",
        status.message
    );
}

#[test]
fn the_agent_has_one_capability_and_is_not_privileged() {
    let agents: DaemonSet = typed(&render(&[]).unwrap(), "DaemonSet");
    let pod = agents.spec.unwrap().template.spec.unwrap();
    let context = pod.containers[0].security_context.clone().unwrap();
    let capabilities = context.capabilities.unwrap();
    assert_eq!(capabilities.drop, Some(vec!["ALL".into()]));
    assert_eq!(capabilities.add, Some(vec!["NET_ADMIN".into()]));
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
}

/// Creates a pod of a template in the namespace `restricted`, without keeping it.
async fn dry_run(client: &Client, account: &str, template: PodTemplateSpec) -> Result<Pod, Error> {
    let service_account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
    Api::<ServiceAccount>::namespaced(client.clone(), "restricted")
        .patch(
            account,
            &PatchParams::apply("test"),
            &Patch::Apply(service_account),
        )
        .await?;
    let mut pod = Pod {
        metadata: template.metadata.unwrap(),
        spec: template.spec,
        ..Default::default()
    };
    pod.metadata.name = Some(account.into());
    let dry_run = PostParams {
        dry_run: true,
        ..Default::default()
    };
    Api::namespaced(client.clone(), "restricted")
        .create(&dry_run, &pod)
        .await
}

/// The chart's objects under these values, or what helm says against them.
fn render(values: &[&str]) -> Result<Vec<Value>, egressnat_e2e::error::Error> {
    let mut helm = helm();
    helm.args([
        "template",
        RELEASE,
        &chart(),
        "--namespace",
        NAMESPACE,
        "--kube-version",
        "1.34.4",
    ]);
    for value in values {
        helm.args(["--set", value]);
    }
    let text = command::output(&mut helm)?;
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let objects = documents.map(|document| serde::Deserialize::deserialize(document).unwrap());
    Ok(objects.filter(|object: &Value| !object.is_null()).collect())
}

/// The objects of the chart's hooks.
pub fn hooks() -> Vec<Value> {
    let mut objects = render(&[]).unwrap();
    objects.retain(|object| !object["metadata"]["annotations"]["helm.sh/hook"].is_null());
    objects
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn typed<T: DeserializeOwned>(objects: &[Value], kind: &str) -> T {
    serde_json::from_value(of_kind(objects, kind)[0].clone()).unwrap()
}
