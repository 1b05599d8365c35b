//! Puts the parts together and runs them.

use std::net::SocketAddr;
use std::sync::Arc;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::apply::Writer;
use crate::controller::Controller;
use crate::election::LeaseConfig;
use crate::error::Error;
use crate::events::Events;
use crate::health::Health;
use crate::http::{self, Told};
use crate::leader;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::watch as watches;
use crate::world::ClusterConfig;

/// Changes that wait for the main loop: when it is busy, the watches wait.
const WAITING_CHANGES: usize = 4096;

/// What an operator needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where `/healthz`, `/readyz` and `/metrics` are; port 0 means any free one.
    pub http_address: SocketAddr,
    /// Ranges of the cluster.
    pub cluster: ClusterConfig,
    /// How the lease is held.
    pub lease: LeaseConfig,
}

/// Runs an operator until `stop` is cancelled, which gives the lease back, or until it cannot go on.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let health = Arc::new(Health::default());
    let listener = http::listen(config.http_address).await?;
    let (to_loop, changes) = mpsc::channel(WAITING_CHANGES);
    let (lead, leads) = watch::channel(false);
    // The lease is given back only after the last write.
    let stop_leading = CancellationToken::new();
    let _watches = watches::start(&client, &to_loop, &metrics);
    drop(to_loop);

    let controller = Controller {
        store: Store::new(config.cluster),
        backlog: None,
        changes,
        leads,
        writer: Writer::new(client.clone()),
        events: Events::new(client.clone(), &config.lease.identity),
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let told = Told {
        health,
        metrics: metrics.clone(),
    };
    let mut leading = tokio::spawn(leader::run(client, config.lease, lead, stop_leading.clone()));
    let ended = tokio::select! {
        ended = controller.run(stop.clone()) => ended,
        ended = &mut leading => return ended.unwrap_or(Err(Error::TaskEnded("leader election"))),
        ended = http::serve(listener, told, stop.child_token()) => match stop.is_cancelled() {
            true => ended,
            false => ended.and(Err(Error::TaskEnded("the HTTP server"))),
        },
    };
    stop_leading.cancel();
    let released = leading.await.unwrap_or(Err(Error::TaskEnded("leader election")));
    ended.and(released)
}
