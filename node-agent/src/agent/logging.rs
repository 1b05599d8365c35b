//! Log lines on standard error.

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// Starts logging. An unreadable level becomes `info`, and says so.
pub fn init(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_new(level);
    let bad = filter.is_err();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    if bad {
        tracing::warn!(level, "failed to read the log level, using info");
    }
}
