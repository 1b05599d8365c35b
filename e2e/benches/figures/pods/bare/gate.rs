//! The start gate's plugin, called as a container runtime calls it: the program and the configuration that the agent has put
//! into the node's folders.

use std::{
    fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egressnat_agent::cni::PLUGIN;
use egressnat_e2e::{
    runtime_folders::{RuntimeFolders, RuntimePod},
    site::Site,
    wait,
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use super::super::DEADLINE;

/// The node's network configuration.
const CONFIGURATION: &str = "10-bench.conflist";
const VERSION: &str = "1.0.0";

/// A gate that is in place.
pub struct Gate {
    program: PathBuf,
    entry: Value,
}

/// The agent's flag that names the plugin's release build.
pub fn flag() -> String {
    let program = Site::target().join("plugin").join(PLUGIN);
    format!("--gate-plugin={}", program.display())
}

/// The configuration of a CNI that the agent may add the plugin to.
pub fn configure(folders: &RuntimeFolders) -> Result<()> {
    let network = json!({"cniVersion": VERSION, "name": "lab", "plugins": [{"type": "ptp"}]});
    Ok(fs::write(
        folders.path("net.d").join(CONFIGURATION),
        network.to_string(),
    )?)
}

impl Gate {
    /// Waits until the agent has put it there.
    pub fn wait(folders: &RuntimeFolders) -> Result<Self> {
        let file = folders.path("net.d").join(CONFIGURATION);
        let entry = wait::until("the start gate", DEADLINE, || -> Result<Value> {
            let network: Value = serde_json::from_slice(&fs::read(&file)?)?;
            let plugins = network["plugins"].as_array();
            let last = plugins.and_then(|plugins| plugins.last()).context("no plugin")?;
            ensure!(last["type"] == PLUGIN, "it is not in the network configuration");
            Ok(last.clone())
        })?;
        Ok(Self {
            program: folders.path("bin").join(PLUGIN),
            entry,
        })
    }

    /// A pod's ADD: how long it took.
    pub async fn add(&self, pod: RuntimePod<'_>) -> Result<Duration> {
        let mut configuration = self.entry.clone();
        configuration["cniVersion"] = VERSION.into();
        configuration["name"] = "lab".into();
        configuration["prevResult"] = pod.result();
        let arguments = pod.arguments().map(|(key, value)| format!("{key}={value}"));
        let begin = Instant::now();
        let mut plugin = Command::new(&self.program)
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", pod.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments.join(";"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = plugin.stdin.take().context("no standard input")?;
        input.write_all(configuration.to_string().as_bytes()).await?;
        drop(input);
        let output = plugin.wait_with_output().await?;
        let took = begin.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{} was not let in: {said}", pod.name);
        Ok(took)
    }
}
