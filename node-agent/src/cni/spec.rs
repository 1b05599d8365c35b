//! What the Container Network Interface says: versions, parameters, results, errors.
//!
//! Source: the CNI specification, versions 0.3.0 to 1.1.0 (containernetworking/cni, `SPEC.md`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The versions that the plugin speaks, the newest last. 0.3.0 is the first with chains, and 0.3.1 what flannel writes;
/// 0.4.0 is the first with CHECK.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the runtime asks for, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod's interface is there: let it be used.
    Add(Attachment),
    /// A pod's interface goes.
    Del(Attachment),
    /// Whether ADD still holds.
    Check(Attachment),
    /// Whether ADD could be served.
    Status,
    /// Forget what is not among the attachments of the configuration.
    Gc,
    /// Which versions the plugin speaks.
    Version,
}

/// An interface of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The runtime's id of the container (of Kubernetes: of the pod's sandbox).
    pub container: String,
    /// The interface's name in the container.
    pub interface: String,
    /// Whose it is. `None` for a container that is not Kubernetes'.
    pub pod: Option<PodName>,
}

/// A pod of Kubernetes, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodName {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Our part of the network configuration, as the runtime writes it to the plugin's standard input.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// The version in which to answer.
    #[serde(default)]
    pub cni_version: String,
    /// The result of the plugins before.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// With GC: the attachments that are still there.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Vec<ValidAttachment>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// What the agent leaves on the node.
    pub standing: PathBuf,
    /// Where the kubelet keeps the node's pods.
    pub kubelet_pods: PathBuf,
    /// How long ADD waits for the agent's word, in seconds.
    pub timeout_seconds: u16,
    /// What happens when it does not come.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// Namespaces whose pods start in any case: the cluster's own.
    #[serde(default)]
    pub exempt_namespaces: Vec<String>,
}

/// An attachment as GC names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface's name in the container.
    #[serde(rename = "ifname")]
    pub interface: String,
}

/// What happens to a pod for which no word comes in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnTimeout {
    /// It does not start, and is tried again by the kubelet.
    #[default]
    Retry,
    /// It starts, and may send with its node's address until the agent has heard of it.
    Allow,
}

/// Why the plugin does not do as it is asked. The code is the specification's.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The configuration's version is not among [`VERSIONS`].
    #[error("cniVersion {0:?} is not supported: use one of {versions}", versions = VERSIONS.join(", "))]
    Version(String),
    /// A parameter is missing or wrong.
    #[error("environment variable {0} is missing or not what it should be")]
    Environment(&'static str),
    /// The configuration cannot be read.
    #[error("failed to read the network configuration: {0}")]
    Configuration(#[from] serde_json::Error),
    /// There is no plugin before this one.
    #[error("no prevResult: {plugin} only works after the plugin that makes the pod's interface", plugin = super::PLUGIN)]
    NotChained,
    /// No word came in time.
    #[error("{0}")]
    TryAgain(String),
    /// What ADD did holds no longer.
    #[error("{0}")]
    NotProgrammed(String),
}

impl FromStr for OnTimeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "Retry" => Ok(Self::Retry),
            "Allow" => Ok(Self::Allow),
            _ => Err("write Retry or Allow".into()),
        }
    }
}

impl CniError {
    /// The code of the specification; from 100 on, the plugin's own.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment(_) => 4,
            Self::Configuration(_) => 6,
            Self::NotChained => 7,
            Self::TryAgain(_) => 11,
            Self::NotProgrammed(_) => 100,
        }
    }

    /// As it is printed for the runtime.
    pub fn result(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code(), "msg": self.to_string()})
    }
}

impl Command {
    /// Reads the parameters. `variable` gives an environment variable's value.
    pub fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let command = variable("CNI_COMMAND").ok_or(CniError::Environment("CNI_COMMAND"))?;
        match command.as_str() {
            "ADD" => Ok(Self::Add(Attachment::parse(&variable)?)),
            "DEL" => Ok(Self::Del(Attachment::parse(&variable)?)),
            "CHECK" => Ok(Self::Check(Attachment::parse(&variable)?)),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            _ => Err(CniError::Environment("CNI_COMMAND")),
        }
    }
}

impl Attachment {
    fn parse(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let needed = |name| variable(name).filter(|v| !v.is_empty());
        Ok(Self {
            container: needed("CNI_CONTAINERID").ok_or(CniError::Environment("CNI_CONTAINERID"))?,
            interface: needed("CNI_IFNAME").ok_or(CniError::Environment("CNI_IFNAME"))?,
            pod: PodName::parse(&variable("CNI_ARGS").unwrap_or_default()),
        })
    }
}

impl PodName {
    /// From `CNI_ARGS`, as kubelet's runtimes write it: `K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;...`.
    fn parse(arguments: &str) -> Option<Self> {
        Self::of(arguments.split(';').filter_map(|pair| pair.split_once('=')))
    }

    /// From the arguments, each with its value.
    pub(super) fn of<'a>(arguments: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Self> {
        let arguments: BTreeMap<&str, &str> = arguments.collect();
        let value = |key| {
            let value = arguments.get(key).filter(|v| !v.is_empty());
            value.map(|v| (*v).to_owned())
        };
        Some(Self {
            uid: value("K8S_POD_UID")?,
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
        })
    }
}

impl Configuration {
    /// Reads it, and refuses versions that the plugin does not speak.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let configuration: Self = serde_json::from_str(text)?;
        match VERSIONS.contains(&configuration.cni_version.as_str()) {
            true => Ok(configuration),
            false => Err(CniError::Version(configuration.cni_version)),
        }
    }

    /// How long ADD waits.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }

    /// The addresses that the plugins before gave to the container.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        let result = self.prev_result.as_ref().ok_or(CniError::NotChained)?;
        Ok(addresses_of(result).collect())
    }
}

/// The addresses of a result of ADD.
pub(super) fn addresses_of(result: &Value) -> impl Iterator<Item = IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
        .map(|net| net.addr())
}

/// The answer to VERSION.
pub fn versions() -> Value {
    json!({"cniVersion": VERSIONS[VERSIONS.len() - 1], "supportedVersions": VERSIONS})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Command, CniError> {
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Command::parse(|name| variables.get(name).map(|v| (*v).to_owned()))
    }

    #[test]
    fn kubernetes_parameters_name_the_pod() {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
                         K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1";
        let command = parse(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", arguments),
        ]);
        let pod = PodName {
            uid: "u-1".into(),
            namespace: "default".into(),
            name: "web".into(),
        };
        let attachment = Attachment {
            container: "c0ffee".into(),
            interface: "eth0".into(),
            pod: Some(pod),
        };
        assert_eq!(command.unwrap(), Command::Add(attachment));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (variables, named) in [
            (vec![], "CNI_COMMAND"),
            (vec![("CNI_COMMAND", "DANCE")], "CNI_COMMAND"),
            (vec![("CNI_COMMAND", "DEL")], "CNI_CONTAINERID"),
            (
                vec![("CNI_COMMAND", "CHECK"), ("CNI_CONTAINERID", "c")],
                "CNI_IFNAME",
            ),
        ] {
            let error = parse(&variables).unwrap_err();
            assert_eq!(error.code(), 4);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn addresses_are_read_from_results_of_every_version() {
        for (version, ip) in [
            (
                "0.3.1",
                json!({"version": "4", "interface": 2, "address": "10.1.2.3/24"}),
            ),
            (
                "0.4.0",
                json!({"version": "4", "interface": 0, "address": "10.1.2.3/24"}),
            ),
            ("1.0.0", json!({"interface": 0, "address": "10.1.2.3/24"})),
            ("1.1.0", json!({"address": "10.1.2.3/24", "gateway": "10.1.2.1"})),
        ] {
            let text = json!({
                "cniVersion": version, "socket": "/s", "standing": "/d", "kubeletPods": "/p",
                "timeoutSeconds": 5, "prevResult": {"ips": [ip, {"address": "2001:db8::3/64"}]},
            });
            let configuration = Configuration::parse(&text.to_string()).unwrap();
            let addresses: Vec<String> = configuration
                .addresses()
                .unwrap()
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(addresses, ["10.1.2.3", "2001:db8::3"]);
        }
    }

    #[test]
    fn other_versions_and_no_chain_are_refused() {
        let text = |version: &str| {
            format!(
                r#"{{"cniVersion": "{version}", "socket": "", "standing": "", "kubeletPods": "", "timeoutSeconds": 5}}"#
            )
        };
        assert_eq!(Configuration::parse(&text("0.2.0")).unwrap_err().code(), 1);
        let alone = Configuration::parse(&text("1.0.0")).unwrap();
        assert_eq!(alone.addresses().unwrap_err().code(), 7);
        assert_eq!(Configuration::parse("{").unwrap_err().code(), 6);
    }
}
