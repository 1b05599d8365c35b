//! Reverse path filters of the links that egress addresses leave by.
//!
//! The way back to who sends to such an address is mostly by the default route's link, so that a strict filter
//! drops every reply. The filter is made loose while the link is an exit. What it was stands in a map of our table,
//! written before the setting and taken away after it: whatever ends an agent between, the next one knows what
//! to put back. A value that somebody has changed since is theirs, and stays.

use super::{Datapath, Known};
use crate::error::AgentError;
use crate::kernel::observe_exits::{remembered, rp_filter};
use crate::model::{Desired, Link};

const LOOSE: &str = "2";

impl Datapath {
    /// Puts back what links had that are no exits any more. Returns how many. Before the table forgets it.
    pub(super) fn restore_reverse_path(&self, desired: &Desired, known: &Known) -> Result<usize, AgentError> {
        let mut restored = 0;
        let stays = |index| desired.loose.keys().any(|link| link.index == index);
        for (index, found) in known.table.as_ref().map(remembered).unwrap_or_default() {
            // A link that has gone took its settings along.
            let Some(link) = known.network.link(index).filter(|_| !stays(index)) else {
                continue;
            };
            let (sysctls, path) = (self.rtnl.sysctls(), rp_filter(&link.name));
            if sysctls.read(&path)?.as_deref() == Some(LOOSE) {
                sysctls.write(&path, &found.to_string())?;
                restored += 1;
            }
        }
        Ok(restored)
    }

    /// Makes the filters of exits loose. Returns how many. After the table remembers what they were.
    pub(super) fn loosen_reverse_path(&self, desired: &Desired) -> Result<usize, AgentError> {
        let strict = self.strict(desired)?;
        for link in &strict {
            self.rtnl.sysctls().write(&rp_filter(&link.name), LOOSE)?;
        }
        Ok(strict.len())
    }

    /// The exits whose filter should be loose and is not.
    pub(super) fn strict<'a>(&self, desired: &'a Desired) -> Result<Vec<&'a Link>, AgentError> {
        let mut strict = Vec::new();
        for link in desired.loose.keys() {
            let value = self.rtnl.sysctls().read(&rp_filter(&link.name))?;
            if value.is_some_and(|value| value != LOOSE) {
                strict.push(link);
            }
        }
        Ok(strict)
    }
}
