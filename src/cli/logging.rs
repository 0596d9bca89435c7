//! Log lines: to standard error, as text or as JSON, from one level up.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;

use crate::config::LogFormat;

/// Starts to write log lines to standard error. They are flat in JSON: the fields of the event, and under `span`
/// those of the request that it belongs to.
///
/// Whoever starts first in a process decides: a later call changes nothing.
pub fn start(format: LogFormat, level: LevelFilter) {
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).try_init(),
    };
}
