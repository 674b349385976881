//! Where the cloud's own messages go: all to a file `log`, warnings to stderr, too.
//!
//! `SHISA_LOG` picks what is written, such as `info,node=debug`. Limit: `LOG_BYTES_MAX` at a start; then the old file
//! becomes `log.1`.

use base::{Error, Result};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

const LOG_BYTES_MAX: u64 = 16 << 20;

pub fn start(path: &Path) -> Result<()> {
    if fs::metadata(path).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("1"))?;
    }
    let file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    let wanted = std::env::var("SHISA_LOG").unwrap_or_else(|_| "info".into());
    let wanted: Targets = wanted
        .parse()
        .map_err(|e| Error::invalid(format!("SHISA_LOG='{wanted}' does not name levels")).because(e))?;
    let to_file = fmt::layer().with_ansi(false).with_writer(Mutex::new(file)).with_filter(wanted);
    let to_person = fmt::layer().without_time().with_writer(std::io::stderr).with_filter(LevelFilter::WARN);
    let set = tracing_subscriber::registry().with(to_file).with(to_person).try_init();
    set.map_err(|e| Error::internal("the log cannot be set up").because(e))
}
