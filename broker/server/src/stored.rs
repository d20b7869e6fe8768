//! `tavi store`: export, import, check and move the store of a stopped broker.

use crate::{
    cli::{Place, StoreCommand},
    config::Config,
    data,
    streams::Streams,
    users,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use tavi_store::export::{self, Progress};
use tavi_store_kv::Options;

/// Runs one command.
pub fn run(command: StoreCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (place, outcome) = runtime.block_on(execute(command))?;
    show(&place, &outcome);
    match outcome.failure {
        Some(failure) => bail!(failure),
        None => Ok(()),
    }
}

struct Outcome {
    json: Value,
    text: String,
    failure: Option<String>,
}

impl Outcome {
    fn good(json: Value, text: String) -> Outcome {
        Outcome { json, text, failure: None }
    }
}

async fn execute(command: StoreCommand) -> Result<(Place, Outcome)> {
    Ok(match command {
        StoreCommand::Export { file, place } => (place.clone(), export_to(&file, &Closed::take(&place)?).await?),
        StoreCommand::Import { file, place } => {
            let input = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
            (place.clone(), import_from(&file, input, &Closed::make(&place)?).await?)
        }
        StoreCommand::Check { place } => (place.clone(), check(&Closed::take(&place)?)?),
        StoreCommand::Migrate { to, place } => (place.clone(), migrate(&to, &Closed::take(&place)?).await?),
    })
}

/// The data folder of a broker that does not run.
struct Closed {
    config: Config,
    _lock: data::Lock,
}

impl Closed {
    fn take(place: &Place) -> Result<Closed> {
        if !place.data.is_dir() {
            bail!("there is no data folder {}: name another with --data DIR", place.data.display());
        }
        Closed::make(place)
    }

    fn make(place: &Place) -> Result<Closed> {
        let lock = data::lock(&place.data).context("`tavi store` works on a stopped broker's data")?;
        Ok(Closed { config: place.config()?, _lock: lock })
    }

    fn options(&self, engine: tavi_store_kv::Engine) -> Options {
        Options { engine, cache: self.config.cache_bytes, ..Options::default() }
    }
}

async fn export_to(path: &Path, closed: &Closed) -> Result<Outcome> {
    let store_path = closed.config.store_path();
    if tavi_store_kv::engine_of(&store_path)?.is_none() {
        bail!("there is no store in {}", store_path.display());
    }
    let store = users::open_store(&closed.config)?;
    // The export holds credentials: for its owner only, and never over an existing file.
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    let mut out = BufWriter::new(file.with_context(|| format!("cannot make {}", path.display()))?);
    let written = async {
        let done = export::export(&*store, &mut out, &mut |progress| told("exported", progress)).await?;
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok::<_, anyhow::Error>(done)
    };
    let written = written.await;
    store.close();
    if written.is_err() {
        // Half an export must not look like one.
        let _ = std::fs::remove_file(path);
    }
    let done = written?;
    Ok(counted("exported", done, path))
}

async fn import_from(path: &Path, file: File, closed: &Closed) -> Result<Outcome> {
    let options = closed.options(closed.config.engine.unwrap_or_default());
    let store = closed.config.store_path();
    if tavi_store_kv::engine_of(&store)?.is_none() {
        Streams::discard(&closed.config.data).context("cannot remove the streams of an earlier store")?;
    }
    let mut told = |progress| told("imported", progress);
    let done = tavi_store_kv::restore(&store, &options, (&mut BufReader::new(file), &mut told)).await?;
    Ok(counted("imported", done, path))
}

fn check(closed: &Closed) -> Result<Outcome> {
    let mut told = |rows| {
        if std::io::stderr().is_terminal() {
            eprint!("\rchecked {rows} rows");
        }
    };
    let report = tavi_store_kv::check(&closed.config.store_path(), closed.config.cache_bytes, &mut told)?;
    let json = json!({ "engine": report.engine.name(), "rows": report.rows, "problems": report.problems, "described": report.described });
    let mut text = format!("{} rows in {}, {} problems", report.rows, report.engine, report.problems);
    report.described.iter().for_each(|problem| text.push_str(&format!("\n  {problem}")));
    let failure = (report.problems > 0).then(|| {
        "the store is damaged: restore the last export with `tavi store import FILE` into a new data folder".to_owned()
    });
    Ok(Outcome { json, text, failure })
}

async fn migrate(to: &str, closed: &Closed) -> Result<Outcome> {
    let engine = to.parse().map_err(|_| anyhow::anyhow!("{to:?} is no engine: use sled or fjall"))?;
    let options = closed.options(engine);
    let moved =
        tavi_store_kv::migrate(&closed.config.store_path(), &options, &mut |progress| told("copied", progress)).await?;
    let json = json!({ "engine": to, "rows": moved.copied.entries, "kept": moved.kept });
    let mut text =
        format!("moved {} rows to {to}; the old files are kept in {}", moved.copied.entries, moved.kept.display());
    if closed.config.engine.is_some_and(|configured| configured != engine) {
        text.push_str(&format!("\nset [store] engine = \"{to}\" in the configuration before the next start"));
    }
    Ok(Outcome::good(json, text))
}

fn counted(what: &str, done: Progress, path: &Path) -> Outcome {
    let text = format!("{what} {} rows, {} bytes: {}", done.entries, done.bytes, path.display());
    Outcome::good(json!({ "rows": done.entries, "bytes": done.bytes, "file": path }), text)
}

fn told(what: &str, progress: Progress) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what} {} rows", progress.entries);
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn show(place: &Place, outcome: &Outcome) {
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    if place.json { println!("{}", outcome.json) } else { println!("{}", outcome.text) }
}
