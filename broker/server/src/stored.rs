//! `tavi store`: export, import, check and move the store of a stopped broker.

use crate::cli::StoreCommand;
use anyhow::Result;

/// Runs one command.
pub fn run(_command: StoreCommand) -> Result<()> {
    anyhow::bail!("not yet")
}
