//! The sources that the kernel may capture at any moment, on the disk for the gate's plugin (`cni/captured.rs`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use egressnat_crds::EgressPlanSpec;

use crate::agent::file::{read, write};
use crate::agent::gate::SOCKET;
use crate::cli::GateFlags;
use crate::cni::captured;

/// Those of the last plan that was carried out, and of all that were tried since.
pub(super) struct Captured {
    sources: BTreeSet<IpAddr>,
    file: Option<PathBuf>,
}

impl Captured {
    /// What a former process has left in a folder that a boot empties.
    pub(super) fn read(flags: &GateFlags) -> Self {
        let file = flags.enabled.then(|| captured::beside(&flags.run.join(SOCKET)));
        Self {
            sources: file.as_deref().map(read).unwrap_or_default(),
            file,
        }
    }

    pub(super) fn sources(&self) -> &BTreeSet<IpAddr> {
        &self.sources
    }

    /// A plan is about to be carried out.
    pub(super) fn begin(&mut self, plan: &EgressPlanSpec) {
        let before = self.sources.len();
        self.sources.extend(sources(plan));
        if self.sources.len() != before {
            self.write();
        }
    }

    /// It was.
    pub(super) fn end(&mut self, plan: &EgressPlanSpec) {
        // Nothing has come since it began.
        let now: BTreeSet<IpAddr> = sources(plan).collect();
        if self.sources != now {
            self.sources = now;
            self.write();
        }
    }

    fn write(&self) {
        self.file.iter().for_each(|file| write(file, &self.sources));
    }
}

fn sources(plan: &EgressPlanSpec) -> impl Iterator<Item = IpAddr> {
    plan.pods.iter().flat_map(|pod| pod.ips.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixtures::{ips, plan};

    #[test]
    fn until_a_plan_is_carried_out_all_that_may_be_in_the_kernel_is_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("captured.json");
        let mut captured = Captured {
            sources: BTreeSet::new(),
            file: Some(file.clone()),
        };
        let (first, second) = (
            plan(true, &[("u1", &["10.1.0.2"])], &[]),
            plan(true, &[("u2", &["10.1.0.3", "2001:db8::3"])], &[]),
        );
        let on_disk = || captured::read(&file).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(on_disk(), ips(&[]));
        captured.begin(&first);
        assert_eq!(on_disk(), ips(&["10.1.0.2"]));
        captured.end(&first);
        captured.begin(&second);
        assert_eq!(on_disk(), ips(&["10.1.0.2", "10.1.0.3", "2001:db8::3"]));
        captured.end(&second);
        assert_eq!(on_disk(), ips(&["10.1.0.3", "2001:db8::3"]));
        captured.end(&EgressPlanSpec::default());
        assert_eq!(on_disk(), ips(&[]));
    }
}
