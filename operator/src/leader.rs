//! Leader election by a Lease: of all operators, one writes. The rules are in [`crate::election`].

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::election::{Election, LEASE_NAME, LeaseConfig, Move};
use crate::error::{Error, Request, chain};

/// Takes the lease and keeps it. `leads` becomes true when it is held. Ends with the lease given back when
/// `stop` is cancelled, and with [`Error::LeaseLost`] when it was held and could not be renewed.
pub async fn run(
    client: Client,
    config: LeaseConfig,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut elector = Elector {
        api: Api::namespaced(client, &config.namespace),
        election: Election::new(config.clone()),
        config,
    };
    let ended = tokio::select! {
        ended = elector.keep(&leads) => ended,
        () = stop.cancelled() => Ok(()),
    };
    leads.send_replace(false);
    if ended.is_ok() {
        elector.release().await;
    }
    ended
}

struct Elector {
    api: Api<Lease>,
    config: LeaseConfig,
    election: Election,
}

impl Elector {
    /// Acquires, then renews until that fails for too long.
    async fn keep(&mut self, leads: &watch::Sender<bool>) -> Result<(), Error> {
        loop {
            let begun = Instant::now();
            let patience = self.election.patience(begun.into_std());
            match timeout_at(patience.into(), self.attempt(begun)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = chain(&Error::Lease(error)), "will be tried again"),
                Err(late) => tracing::warn!(error = chain(&Error::Lease(late.into())), "will be tried again"),
            }
            let now = Instant::now().into_std();
            // Those who wait for a change are not woken by every renewal.
            if self.election.leads(now) && leads.send_if_modified(|held| !std::mem::replace(held, true)) {
                tracing::info!(identity = self.config.identity, "holds the lease");
            }
            match self.election.next(now) {
                Some(next) => sleep_until(next.into()).await,
                None => return Err(Error::LeaseLost),
            }
        }
    }

    /// One attempt to take or renew the lease.
    async fn attempt(&mut self, begun: Instant) -> Result<(), Request> {
        let lease = self.api.get_opt(LEASE_NAME).await?;
        let now = Instant::now().into_std();
        let params = PostParams::default();
        let written = match self.election.decide(lease, now, Timestamp::now()) {
            Move::Wait => return Ok(()),
            Move::Create(lease) => self.api.create(&params, &lease).await,
            Move::Replace(lease) => self.api.replace(LEASE_NAME, &params, &lease).await,
        };
        match written {
            Ok(lease) => self.election.won(lease, begun.into_std()),
            // Somebody was faster: the next attempt reads who.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn release(&self) {
        let Some(lease) = self.election.release(Instant::now().into_std(), Timestamp::now()) else {
            return;
        };
        let params = PostParams::default();
        let write = self.api.replace(LEASE_NAME, &params, &lease);
        match timeout(self.config.retry_period, write).await {
            Ok(Ok(_)) => tracing::info!("gave the lease back"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "failed to give the lease back"),
            Err(_) => tracing::warn!("failed to give the lease back in time"),
        }
    }
}
