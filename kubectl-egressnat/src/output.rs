//! How answers are written.

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

/// Writes the answer to standard output; `text` is what people read.
pub fn print<T: Serialize>(format: Format, answer: &T, text: impl FnOnce() -> String) -> Result<(), Error> {
    write(&formatted(format, answer, text)?)
}

/// Writes the answer that takes the place of the one before: over it on a terminal, after it elsewhere.
pub fn print_again<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Error> {
    const CLEAR: &str = "\x1b[H\x1b[2J";
    let answer = formatted(format, answer, text)?;
    match format {
        Format::Text if std::io::stdout().is_terminal() => write(&format!("{CLEAR}{answer}")),
        Format::Text => write(&format!("{answer}\n")),
        Format::Json => write(&answer),
        Format::Yaml => write(&format!("---\n{answer}")),
    }
}

/// Writes text to standard output.
pub fn write(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn formatted<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce() -> String,
) -> Result<String, Error> {
    match format {
        Format::Text => Ok(text()),
        Format::Json => {
            let json = serde_json::to_string_pretty(answer);
            json.map(|j| j + "\n").map_err(|e| Error::Format(e.to_string()))
        }
        Format::Yaml => serde_yaml_ng::to_string(answer).map_err(|e| Error::Format(e.to_string())),
    }
}

/// Whether colours may be used: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
pub fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    std::io::stdout().is_terminal() && !refused
}
