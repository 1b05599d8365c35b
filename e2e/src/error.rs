//! The one error type of the lab, and the two helpers that put words around a system call's error.

use std::{io, time::Duration};

/// What went wrong in the lab, worded so that the message alone says what to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file operation failed.
    #[error("failed to {action}")]
    Io {
        /// What was being done, as an infinitive: "open /run/netns/x".
        action: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A program ran and said no.
    #[error("failed to run `{command}` ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// What it printed on standard error, or on standard output when that was empty.
        output: String,
    },
    /// A condition did not come true in time.
    #[error("failed to see {what} within {} s: {last}", .after.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was given.
        after: Duration,
        /// What the last look at it showed.
        last: String,
    },
    /// A certificate or key could not be made.
    #[error("failed to make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The state found is not one that the lab can work with; the text says what to do.
    #[error("{0}")]
    State(String),
}

/// Result of every fallible function of the lab.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the action that a system error belongs to.
pub trait Context<T> {
    /// Wraps the error as "failed to `action`".
    ///
    /// # Errors
    /// The error it was called on, wrapped.
    fn context(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: action(),
            source: source.into(),
        })
    }
}
