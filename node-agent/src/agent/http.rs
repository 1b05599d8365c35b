//! `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::{Health, Metrics};
use crate::error::AgentError;

/// Begins to listen, and answers in the background from then on.
pub(super) async fn serve(address: SocketAddr, metrics: Metrics, health: Health) -> Result<(), AgentError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address, source })?;
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(health))
        .route("/metrics", get(scrape).with_state(metrics));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "failed to serve HTTP");
        }
    });
    Ok(())
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    match health.ready() {
        Ok(warnings) => (StatusCode::OK, format!("ok\n{warnings}")),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    let content_type = [(
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    match metrics.encode().await {
        Ok(text) => (StatusCode::OK, content_type, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
