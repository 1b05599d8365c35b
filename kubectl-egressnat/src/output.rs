//! How answers are written.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::error::Error;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[value(alias = "table")]
    Text,
    /// As JSON
    Json,
    /// As YAML
    Yaml,
}

/// Writes the answer to standard output.
pub fn print<T: Serialize + Display>(answer: &T, format: Format) -> Result<(), Error> {
    let text = match format {
        Format::Text => answer.to_string(),
        Format::Json => {
            let json = serde_json::to_string_pretty(answer);
            json.map_err(|e| Error::Format(e.to_string()))? + "\n"
        }
        Format::Yaml => serde_yaml_ng::to_string(answer).map_err(|e| Error::Format(e.to_string()))?,
    };
    write(&text)
}

/// Writes text to standard output. A reader that has seen enough (`| head`) is no error.
pub fn write(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Whether colours may be used: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
pub fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    std::io::stdout().is_terminal() && !refused
}
