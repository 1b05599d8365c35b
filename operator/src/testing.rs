//! Values for tests.

use egressnat_crds::EgressNATPolicyStatus;
use k8s_openapi::jiff::Timestamp;

use crate::valid::ValidPolicy;
use crate::world::{Policy, PolicySpec};

/// A moment, in seconds from the one at which everything in tests is made.
pub fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// A valid policy, whose uid is its name.
pub fn policy(name: &str) -> Policy {
    let spec = "{selectors: [{podSelector: {}}], egressSourceIP: 192.0.2.1}";
    Policy {
        uid: name.into(),
        generation: 1,
        created: time(0),
        spec: PolicySpec::Valid(ValidPolicy::parse(&serde_yaml_ng::from_str(spec).unwrap()).unwrap()),
        status: EgressNATPolicyStatus::default(),
    }
}
