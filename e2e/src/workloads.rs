//! Restarting everything that runs on a cluster, by any kubeconfig.

use serde_json::Value;

use crate::{
    error::{Context, Result},
    kubectl::Kubectl,
    progress::Progress,
};

/// Restarts the pods of every Deployment, DaemonSet and StatefulSet, and waits for the new ones.
///
/// # Errors
/// When one of them does not come back within two minutes.
pub fn restart_all(kubectl: &Kubectl, progress: &Progress) -> Result<()> {
    let workloads = list(kubectl)?;
    for (namespace, workload) in &workloads {
        kubectl.run(["-n", namespace, "rollout", "restart", workload])?;
    }
    for (namespace, workload) in &workloads {
        kubectl.run(["-n", namespace, "rollout", "status", workload, "--timeout=120s"])?;
        progress.step(&format!("restarted {namespace}/{workload}"));
    }
    Ok(())
}

fn list(kubectl: &Kubectl) -> Result<Vec<(String, String)>> {
    let text = kubectl.run(["get", "deployment,daemonset,statefulset", "-A", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).context(|| "read the list of workloads".into())?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |item: &Value| {
        format!(
            "{}/{}",
            text(&item["kind"]).to_lowercase(),
            text(&item["metadata"]["name"])
        )
    };
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items
        .map(|item| (text(&item["metadata"]["namespace"]), name(item)))
        .collect())
}
