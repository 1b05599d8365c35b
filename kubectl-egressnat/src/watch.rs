//! `status --watch`: the policies and plans as they change.

use std::pin::pin;
use std::time::Duration;

use egressnat_crds::{EgressNATPolicy, EgressPlan};
use egressnat_operator::convert;
use egressnat_operator::error::chain;
use egressnat_operator::store::{Change, Delta, Store};
use egressnat_operator::world::World;
use futures::{Stream, StreamExt, stream};
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use kube_runtime::WatchStreamExt;
use kube_runtime::watcher::{Config, Error as WatchError, Event, watcher};
use tokio::time::{Instant, timeout_at};

use crate::cluster::Cluster;
use crate::error::Error;

/// What comes within this time of a change is shown with it.
const PAUSE: Duration = Duration::from_millis(200);

/// Shows the policies and plans, and again whenever they change, until `show` fails.
pub async fn watch(
    cluster: &Cluster,
    mut show: impl FnMut(&World) -> Result<(), Error>,
) -> Result<(), Error> {
    let policies = watcher(
        cluster.all::<DeserializeGuard<EgressNATPolicy>>(),
        Config::default(),
    );
    let plans = watcher(cluster.all::<DeserializeGuard<EgressPlan>>(), Config::default());
    let changes = stream::select(
        changes(policies, convert::policy, Change::Policies),
        changes(plans, convert::plan, Change::Plans),
    );
    let mut changes = pin!(changes);
    let mut store = Store::default();
    let (mut policies, mut plans) = (false, false);
    while let Some(first) = changes.next().await {
        let until = Instant::now() + PAUSE;
        let mut next = Some(first);
        let mut changed = false;
        while let Some(change) = next {
            policies |= matches!(change, Change::Policies(Delta::Synced));
            plans |= matches!(change, Change::Plans(Delta::Synced));
            changed |= store.apply(change);
            next = timeout_at(until, changes.next()).await.ok().flatten();
        }
        if changed && policies && plans {
            show(store.world())?;
        }
    }
    Ok(())
}

/// A watch that is begun again when it breaks, and says so.
fn changes<K, V>(
    events: impl Stream<Item = Result<Event<K>, WatchError>>,
    convert: fn(K) -> V,
    change: fn(Delta<V>) -> Change,
) -> impl Stream<Item = Change>
where
    K: Resource + Clone,
{
    events.default_backoff().filter_map(move |event| async move {
        match event {
            Ok(event) => Some(change(delta(event, convert))),
            Err(error) => {
                eprintln!("the watch broke and is begun again: {}", chain(&error));
                None
            }
        }
    })
}

fn delta<K: Resource, V>(event: Event<K>, convert: fn(K) -> V) -> Delta<V> {
    match event {
        Event::Init => Delta::Restart,
        Event::InitApply(object) => Delta::Listed(object.name_any(), convert(object)),
        Event::InitDone => Delta::Synced,
        Event::Apply(object) => Delta::Set(object.name_any(), convert(object)),
        Event::Delete(object) => Delta::Gone(object.name_any()),
    }
}
