//! Logs on stderr, as text or JSON.

use crate::config::{Config, LogFormat};
use anyhow::{Context, Result};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging; once.
pub fn start(config: &Config) -> Result<()> {
    let filter = filter(&config.log_level).with_context(|| format!("[log] level = {:?}", config.log_level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))
}

/// What libraries tell of their own doings is not for operators: of these only warnings, unless the level names them.
const INNER: &str = "fjall=warn,lsm_tree=warn,sled=warn,rustls=warn";

fn filter(level: &str) -> Result<EnvFilter> {
    Ok(EnvFilter::try_new(format!("{INNER},{level}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_tell_warnings_only_unless_the_level_names_them() {
        let quiet = filter("debug").unwrap().to_string();
        assert!(quiet.contains("debug") && quiet.contains("lsm_tree=warn") && quiet.contains("sled=warn"), "{quiet}");
        let named = filter("info,fjall=trace").unwrap().to_string();
        assert!(named.contains("fjall=trace") && !named.contains("fjall=warn"), "{named}");
        assert!(filter("tavi=loud").is_err());
    }
}
