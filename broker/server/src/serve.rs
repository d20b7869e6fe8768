//! The start-up list: what the broker does from the first line to `ready`, and back.

use crate::{
    admin::Office,
    cli::ServeArgs,
    client_certificate,
    config::{Config, Key, LogFormat},
    data, front, listen, logs, people,
    removal::Removals,
    signals::{Signals, Wish},
    streams::Streams,
    tls::Tls,
    tokens, users,
};
use anyhow::{Result, anyhow};
use std::{sync::Arc, time::Duration};
use tavi_core::{Clock, Journal, Node, Parts, Registry, SystemClock, journal::Book, topics::Tidy};
use tavi_enrol::Secret;
use tavi_modules::archive::Retention;
use tavi_store::{Expect, Op, Owner, Table};
use tavi_store_kv::{KvStore, Options};
use tavi_xmpp_proto::jid::BareJid;

/// How often the broker looks whether its own certificate is to be renewed.
const RENEWAL: Duration = Duration::from_secs(86_400);

/// How long a broker whose store has failed still tells so before it ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long topics are left alone after the store failed.
const TIDY_AGAIN: Duration = Duration::from_secs(10);

/// Runs the broker until it is told to stop.
pub fn run(args: &ServeArgs) -> Result<()> {
    let config = Config::load(args)?;
    if args.check {
        return check(&config);
    }
    logs::start(&config)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("tavi-net")
        .on_thread_park(crate::memory::rest)
        .build()?;
    runtime.block_on(serve(config))
}

/// `--check`: everything that can be known without starting.
fn check(config: &Config) -> Result<()> {
    if config.certificate.is_some() {
        Tls::load(config, SystemClock.now_ms())?;
    }
    users::engine(config)?;
    config.check_folders()?;
    say(&format!(
        "the configuration is right; data folder {}, domain {}",
        config.data.display(),
        config.hosts.domain()
    ));
    Ok(())
}

async fn serve(config: Config) -> Result<()> {
    tokio::spawn(crate::memory::tidy());
    let mut signals = Signals::new()?;
    let _lock = data::lock(&config.data)?;
    data::first_contents(&config.data)?;
    let listeners = listen::open(&config.listen)?;
    let tls = Tls::load(&config, SystemClock.now_ms())?;
    let store = first_engine(&config).await?;
    data::note_served(&config.data, config.hosts.domain())?;
    let (journal, streams) = streams(&config);
    let node = node(&config, store.clone(), journal).await?;
    first_admin(&config, &node.parts).await?;
    warn_of_strangers(&node.parts).await?;
    node.router.registry().start().await?;
    node.correct_states().await?;
    tokio::spawn(tidy_topics(Tidy::new(&node.parts.topics)));
    if let Some(keep) = config.archive_keep {
        tokio::spawn(expire_archives(Retention::new(&node.parts, keep)));
    }
    let addresses = listeners.addresses.clone();
    let removals = Removals::new(node.clone());
    let office = Arc::new(Office::new(node.parts.clone(), removals.clone(), addresses.clone()));
    let start = front::Start { node: &node, tls: &tls, config: &config, store: &store, office };
    let fronts = front::start(start, streams, listeners.open).await?;
    removals.resume().await?;
    announce(&config, &addresses)?;
    let failed = tokio::select! {
        () = until_stopped(&mut signals, &config, &tls, &fronts) => None,
        error = store.failure() => Some(error),
    };
    if let Some(error) = &failed {
        tracing::error!(%error, "the store has failed; stopping, since nothing can be saved. What was acknowledged is there");
        // Everything is refused now; clients, /healthz and /metrics tell why for a moment.
        let stopped = until_stopped(&mut signals, &config, &tls, &fronts);
        _ = tokio::time::timeout(FAREWELL, stopped).await;
    }
    fronts.stop().await;
    drain(&node).await;
    node.parts.journal.flush();
    close(store).await;
    tracing::info!("stopped");
    match failed {
        None => Ok(()),
        Some(error) => Err(anyhow!("the store has failed ({error}); look at its disk, then start again")),
    }
}

/// Opens the store. One that was imported before any broker served this folder has the engine of the command; it takes
/// the one that the broker is configured for.
async fn first_engine(config: &Config) -> Result<Arc<KvStore>> {
    let (path, fresh) = (config.store_path(), data::served(&config.data).is_none());
    if let (true, Some(wanted), Some(found)) = (fresh, config.engine, tavi_store_kv::engine_of(&path)?)
        && wanted != found
    {
        tracing::info!("the imported store moves from {found} to {wanted}, as configured");
        let options = Options { engine: wanted, cache: config.cache_bytes, ..Options::default() };
        tavi_store_kv::migrate(&path, &options, &mut |_| ()).await?;
    }
    users::open_store(config)
}

/// Where streams are noted that can be resumed, and those that an earlier process left.
fn streams(config: &Config) -> (Arc<Journal>, Book) {
    let file = Streams::of(&config.data).filter(|_| !config.limits.xmpp().resume.is_zero());
    let Some(file) = file else { return (Arc::new(Journal::none()), Book::default()) };
    let book = file.read();
    (Arc::new(Journal::over(Box::new(file))), book)
}

/// The parts and the modules, put together.
pub async fn node(config: &Config, store: Arc<KvStore>, journal: Arc<Journal>) -> Result<Node> {
    let mut parts = Parts::load(config.hosts.clone(), store, Arc::new(SystemClock), config.limits.sessions()).await?;
    parts.journal = journal;
    parts.permit.set_quota(config.limits.grants_per_subject());
    parts.topics.set_quota(config.limits.retained());
    parts.login.set_tokens(tokens::Registry::new(parts.clone()));
    parts.login.set_certificates(Arc::new(client_certificate::Devices(parts.clone())));
    let mut registry = Registry::default();
    let settings = tavi_modules::Settings { archive: config.archive, ..config.limits.modules() };
    tavi_modules::register_with(&mut registry, &parts, &settings)?;
    Ok(Node::new(parts, registry))
}

/// Retained values expire, one step at a time. Ends with the broker.
async fn tidy_topics(mut tidy: Tidy) {
    loop {
        let pause = tidy.step().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "retained values could not be looked through");
            TIDY_AGAIN
        });
        tokio::time::sleep(pause).await;
    }
}

/// What has been archived for as long as it may goes, one step at a time. Ends with the broker.
async fn expire_archives(retention: Retention) {
    loop {
        let pause = retention.step().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "old messages could not be deleted");
            TIDY_AGAIN
        });
        tokio::time::sleep(pause).await;
    }
}

/// Accounts of another domain, from before it was changed, can not log in.
async fn warn_of_strangers(parts: &Parts) -> Result<()> {
    let rows = parts.store.scan(Table::Account, None, 1000).await?;
    let jids = rows.iter().filter_map(|row| row.owner.name().parse::<BareJid>().ok());
    let strangers: Vec<_> = jids.filter(|jid| parts.hosts.find(jid.domain()).is_none()).collect();
    if let Some(who) = said_of(&strangers) {
        tracing::warn!("{who} belong to another domain than {} and can not log in", parts.hosts.domain());
    }
    Ok(())
}

/// How many people and devices these are, with one of each.
fn said_of(strangers: &[BareJid]) -> Option<String> {
    let (devices, people): (Vec<_>, Vec<_>) = strangers.iter().partition(|jid| jid.domain().starts_with("things."));
    let some = |what: &str, all: &[&BareJid]| all.first().map(|one| format!("{} {what} such as {one}", all.len()));
    let said: Vec<String> = [some("accounts", &people), some("devices", &devices)].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(" and "))
}

/// In the data folder: the first account's password, if the log is JSON.
const FIRST_PASSWORD: &str = "admin-password";

/// The very first start of a domain makes `admin@DOMAIN` and shows its password once.
async fn first_admin(config: &Config, parts: &Parts) -> Result<()> {
    let owner = Owner::system("broker");
    let jid = BareJid::new("admin", parts.hosts.domain())?;
    if parts.store.load(&owner, Table::System, jid.as_str()).await?.is_some() {
        return Ok(());
    }
    let password = people::new_secret().map_err(|error| anyhow!("{error}"))?;
    match parts.accounts.create(&jid, password.expose()).await {
        Ok(()) => show_first(config, &jid, &password)?,
        Err(tavi_core::accounts::AccountError::Exists(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let value = jid.to_string().into();
    let made = Op::Put { table: Table::System, item: jid.as_str().into(), value, expect: Expect::Any };
    Ok(parts.store.commit(&owner, vec![made]).await?)
}

/// The only time that this password is shown. JSON lines are gathered by somebody: then it lies in a file that only the
/// broker's user can read.
fn show_first(config: &Config, jid: &BareJid, password: &Secret) -> Result<()> {
    if config.log_format == LogFormat::Json {
        let file = config.data.join(FIRST_PASSWORD);
        data::write_new(&file, format!("{}\n", password.expose()).as_bytes(), 0o600)?;
        tracing::info!(account = %jid, file = %file.display(), "made the first account; this file holds its password");
        return Ok(());
    }
    eprintln!(
        "made the account {jid} with the password {} (shown this once; change it with `tavi user passwd {jid}`)",
        password.expose()
    );
    Ok(())
}

/// The line that scripts wait for.
#[derive(serde::Serialize)]
struct Ready<'a> {
    ready: bool,
    listeners: &'a std::collections::BTreeMap<String, String>,
}

fn announce(config: &Config, addresses: &std::collections::BTreeMap<String, String>) -> Result<()> {
    if config.json {
        say(&serde_json::to_string(&Ready { ready: true, listeners: addresses })?);
        return Ok(());
    }
    for key in Key::ALL {
        if let Some(address) = addresses.get(key.name()) {
            say(&format!("{:<6} {address}", key.name()));
        }
    }
    say("ready");
    Ok(())
}

async fn until_stopped(signals: &mut Signals, config: &Config, tls: &Tls, fronts: &front::Fronts) {
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.tick().await;
    loop {
        let wish = tokio::select! {
            wish = signals.next() => wish,
            _ = renewal.tick() => Wish::Reload,
        };
        match wish {
            Wish::Stop => return,
            Wish::Reload => reload(config, tls, fronts).await,
        }
    }
}

async fn reload(config: &Config, tls: &Tls, fronts: &front::Fronts) {
    match tls.reload(config, SystemClock.now_ms()) {
        Ok(()) => tracing::info!("read the certificate again"),
        Err(error) => tracing::error!("the certificate stays as it is: {error:#}"),
    }
    fronts.reload_bots().await;
}

/// Waits until sessions that ended have saved their last messages.
async fn drain(node: &Node) {
    let ended = async {
        while node.parts.metrics.draining.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(2), ended).await.is_err() {
        tracing::error!("some sessions' last messages were not saved in time; nobody had them acknowledged");
    }
}

async fn close(store: Arc<KvStore>) {
    // The committer commits what waits; that blocks.
    if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
        tracing::error!("the store did not close in order");
    }
}

/// As many connections as the system lets this user have.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a structure that lives through them.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        }
    };
    if !raised {
        tracing::warn!("the limit of open files could not be raised");
    }
}

#[expect(clippy::print_stdout, reason = "what the operator and scripts wait for")]
fn say(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_another_domain_are_not_counted_as_people() {
        let jids = |all: &[&str]| all.iter().map(|jid| jid.parse().unwrap()).collect::<Vec<BareJid>>();
        let mixed = jids(&["anna@old", "1@things.old", "2@things.old"]);
        assert_eq!(said_of(&mixed).unwrap(), "1 accounts such as anna@old and 2 devices such as 1@things.old");
        assert_eq!(said_of(&mixed[1..]).unwrap(), "2 devices such as 1@things.old");
        assert_eq!(said_of(&[]), None);
    }
}
