//! What the runtime keeps of each ADD: which pod has which addresses.
//!
//! libcni, by which containerd and CRI-O call plugins, writes a file for each interface when the last plugin of the chain
//! has returned, so before the pod's first container starts, and removes it after DEL (containernetworking/cni,
//! `libcni/api.go`, since 0.8.0). Pure: text in, value out.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::notes::Note;
use super::spec::{PodName, ValidAttachment, addresses_of};

/// The folder of the files, below libcni's cache.
pub const FOLDER: &str = "results";

/// The longest file that is read, in bytes: it has the network configuration and the pod's annotations in it.
pub const LONGEST: u64 = 1 << 20;

/// The only kind there is.
const KIND: &str = "cniCacheV1";

/// The interface of a pod's own network: containerd and CRI-O call it so, and the API server has its addresses. Those
/// of others may be anybody's.
const INTERFACE: &str = "eth0";

/// So many addresses an interface may have.
const MOST_ADDRESSES: usize = 16;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// Not JSON, or not what libcni writes.
    #[error("failed to parse: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// What a later libcni may write, or one before 0.8.0.
    #[error("its kind is {0:?}, not {KIND}")]
    Kind(String),
    /// No network gives a pod so many.
    #[error("it has more than {MOST_ADDRESSES} addresses")]
    TooMany,
}

impl ResultError {
    /// Whether the file may be on its way: libcni does not write it at once.
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Unreadable(error) if error.is_eof())
    }
}

/// A file, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: Value,
}

/// The pod of a cached result, and its addresses. `None` where it is no pod's, or not of the pod's own network.
pub fn parse(text: &[u8]) -> Result<Option<Note>, ResultError> {
    let cached: Cached = serde_json::from_slice(text)?;
    if cached.kind != KIND {
        return Err(ResultError::Kind(cached.kind));
    }
    let arguments = cached.cni_args.iter();
    let pod = PodName::of(arguments.map(|(key, value)| (key.as_str(), value.as_str())));
    let (Some(pod), INTERFACE) = (pod, cached.if_name.as_str()) else {
        return Ok(None);
    };
    let addresses: BTreeSet<IpAddr> = addresses_of(&cached.result).filter(is_of_a_pod).collect();
    if addresses.len() > MOST_ADDRESSES {
        return Err(ResultError::TooMany);
    }
    let note = Note {
        pod,
        attachment: ValidAttachment {
            container: cached.container_id,
            interface: cached.if_name,
        },
        addresses,
    };
    Ok(Some(note).filter(|note| !note.addresses.is_empty()))
}

fn is_of_a_pod(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As containerd 1.6.20 has written it, but for the configuration.
    fn cached() -> Value {
        json!({
            "kind": "cniCacheV1",
            "containerId": "c0ffee",
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "lab",
            "netns": "/var/run/netns/cni-5f7c",
            "cniArgs": [
                ["K8S_POD_NAME", "web"], ["K8S_POD_INFRA_CONTAINER_ID", "c0ffee"], ["K8S_POD_UID", "u-1"],
                ["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"],
            ],
            "capabilityArgs": {"dns": {}, "io.kubernetes.cri.pod-annotations": {"a": "b"}},
            "result": {
                "cniVersion": "0.4.0",
                "dns": {},
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/var/run/netns/cni-5f7c"}],
                "ips": [
                    {"version": "4", "interface": 1, "address": "10.1.2.3/32", "gateway": "10.1.2.1"},
                    {"version": "6", "interface": 1, "address": "2001:db8::3/128"},
                ],
            },
        })
    }

    fn parsed(value: &Value) -> Result<Option<Note>, ResultError> {
        parse(value.to_string().as_bytes())
    }

    fn with(change: impl FnOnce(&mut Value)) -> Result<Option<Note>, ResultError> {
        let mut value = cached();
        change(&mut value);
        parsed(&value)
    }

    #[test]
    fn it_tells_which_pod_has_which_addresses() {
        let note = Note::example(&["10.1.2.3", "2001:db8::3"]);
        assert_eq!(parsed(&cached()).unwrap(), Some(note));
    }

    #[test]
    fn other_interfaces_and_containers_and_addresses_are_nothing() {
        for what in [
            with(|it| it["ifName"] = "lo".into()),
            with(|it| it["ifName"] = "net1".into()),
            with(|it| it["cniArgs"] = json!([["K8S_POD_NAME", "web"]])),
            with(|it| drop(it.as_object_mut().unwrap().remove("cniArgs"))),
            with(|it| it["result"]["ips"] = json!([{"address": "127.0.0.1/8"}, {"address": "::/0"}])),
            with(|it| it["result"]["ips"] = json!([{"address": "web"}, 7])),
            with(|it| it["result"] = Value::Null),
        ] {
            assert_eq!(what.unwrap(), None);
        }
    }

    #[test]
    fn what_is_not_libcnis_is_refused() {
        for kind in [json!("cniCacheV2"), json!("")] {
            let error = with(|it| it["kind"] = kind).unwrap_err();
            assert!(matches!(error, ResultError::Kind(_)), "{error}");
        }
        // As libcni before 0.8.0 wrote it: the result alone.
        let error = parsed(&cached()["result"]).unwrap_err();
        assert!(matches!(error, ResultError::Kind(_)), "{error}");
        let many = (0..=16).map(|n| json!({"address": format!("10.1.2.{n}/24")}));
        let error = with(|it| it["result"]["ips"] = many.collect()).unwrap_err();
        assert!(matches!(error, ResultError::TooMany), "{error}");
        for garbage in ["[]", "7", "{\"kind\": 7}", "\u{0}", "{\"cniArgs\": [[1, 2]]}"] {
            let error = parse(garbage.as_bytes()).unwrap_err();
            assert!(!error.is_incomplete(), "{garbage}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_being_written_is_incomplete_at_every_length() {
        let text = cached().to_string();
        for length in 0..text.len() {
            assert!(
                parse(&text.as_bytes()[..length]).unwrap_err().is_incomplete(),
                "{length}"
            );
        }
    }
}
