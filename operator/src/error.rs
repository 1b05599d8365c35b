//! What can go wrong outside of the planner.

/// Why the operator failed to do something, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No way to the API server.
    #[error("failed to configure the client of the API server")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address of the HTTP server.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP server.
    #[error("failed to serve HTTP")]
    Serve(#[source] std::io::Error),
    /// A plan that was not written.
    #[error("failed to write the plan of node {node}")]
    WritePlan {
        /// The plan's name.
        node: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// A plan that was not deleted.
    #[error("failed to delete the plan of node {node}, which is gone")]
    DeletePlan {
        /// The plan's name.
        node: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// A status that was not written.
    #[error("failed to write the status of policy {policy}")]
    WriteStatus {
        /// The policy's name.
        policy: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// A taint that was not taken away.
    #[error("failed to take taint {} from node {node}", crate::world::STARTUP_TAINT)]
    RemoveTaint {
        /// The node.
        node: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// An Event that was not sent.
    #[error("failed to send an Event on {object}")]
    SendEvent {
        /// What it is about.
        object: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// The Lease could not be read or written.
    #[error("failed to read or write the lease")]
    Lease(#[source] Request),
    /// Another process may be the leader by now.
    #[error("failed to keep the lease: another process may write by now")]
    LeaseLost,
    /// The release is not ready to be uninstalled.
    #[error("failed to {what}")]
    Teardown {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: Request,
    },
    /// A task ended that must not.
    #[error("failed to keep running: {0} ended")]
    TaskEnded(&'static str),
}

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum Request {
    /// The API server, or the way to it.
    #[error(transparent)]
    Kube(#[from] kube::Error),
    /// No answer in time.
    #[error("no answer from the API server in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl Error {
    /// The metric label of the error.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client(_) => "Client",
            Self::Listen { .. } | Self::Serve(_) => "Http",
            Self::WritePlan { .. } | Self::DeletePlan { .. } => "PlanWrite",
            Self::WriteStatus { .. } => "StatusWrite",
            Self::RemoveTaint { .. } => "TaintWrite",
            Self::SendEvent { .. } => "Event",
            Self::Lease(_) | Self::LeaseLost => "Lease",
            Self::Teardown { .. } => "Teardown",
            Self::TaskEnded(_) => "Task",
        }
    }
}

impl Request {
    /// The API server answered that there is no such object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 404)
    }
}

/// The error and everything that led to it, on one line. Some errors say in their own text what led to them:
/// that is not said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_everything_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let service = Request::Kube(kube::Error::Service(refused.into()));
        let error = Error::WritePlan {
            node: "n".into(),
            source: service,
        };
        let text = chain(&error);
        assert!(text.starts_with("failed to write the plan of node n: "), "{text}");
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
    }

    #[test]
    fn answers_of_the_api_server_are_told_apart() {
        let status = |code| {
            Request::Kube(kube::Error::Api(
                kube::core::Status::failure("", "").with_code(code).boxed(),
            ))
        };
        assert!(status(404).is_not_found());
        assert!(!status(409).is_not_found());
    }
}
