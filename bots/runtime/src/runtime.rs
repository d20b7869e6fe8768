//! All bots of a broker: started from their folders, reloaded when these change, stopped in order.

use crate::{
    engine::{Engine, Limits, Script, is_installed},
    loader::{Scan, scan},
    pool::Pool,
    seat::{Busy, Seat, Shared},
    store::Rows,
};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{collections::BTreeMap, io, num::NonZero, path::PathBuf, sync::Arc, time::Duration};
use tavi_core::{Host, Node, link::Link};
use tavi_store::StoreError;
use tavi_xmpp_proto::jid::BareJid;
use tokio::{
    sync::{Mutex, Notify, watch},
    task::JoinHandle,
};

/// How many runs wait for a thread. What waits before them lies in inboxes and rows, where a stop saves it.
const QUEUE: usize = 512;
/// How long a stop waits for what is on its way to the store and to receivers.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long after a change the folders are read: editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// How often a change of the grants is looked for.
const GRANTS: Duration = Duration::from_millis(500);

/// Why bots cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gives no more threads.
    #[error("the threads for bots cannot be started: {0}")]
    Threads(#[source] io::Error),
    /// Nothing would bound what a script holds in memory.
    #[error("the program has to install tavi_bots::Metered as its allocator")]
    Allocator,
    /// The folder cannot be watched.
    #[error("the folder {0:?} cannot be watched: {1}")]
    Watch(PathBuf, #[source] notify::Error),
}

/// All bots of a broker.
#[derive(Clone)]
pub struct Bots {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Shared,
    folders: Vec<PathBuf>,
    running: Mutex<BTreeMap<String, Running>>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<()>>>,
    watcher: parking_lot::Mutex<Option<RecommendedWatcher>>,
}

struct Running {
    seat: Arc<Seat>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Bots {
    /// Starts the bots of all `NAME.rhai` in the folders; a folder that is not there has none. A script that cannot be
    /// loaded is logged with the place of each mistake, and the others start. Fails if there are no threads, or if the
    /// program's allocator does not count ([`crate::Metered`]).
    pub async fn start(node: Node, folders: Vec<PathBuf>) -> Result<Bots, StartError> {
        if !is_installed() {
            return Err(StartError::Allocator);
        }
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let pool = Arc::new(Pool::start(threads, QUEUE).map_err(StartError::Threads)?);
        let shared = Shared { node, engine: Arc::new(Engine::new(Limits::default())), pool, busy: Busy::default() };
        let inner = Inner {
            shared,
            folders,
            running: Mutex::default(),
            tasks: parking_lot::Mutex::default(),
            watcher: parking_lot::Mutex::default(),
        };
        let bots = Bots { inner: Arc::new(inner) };
        bots.reload().await;
        let grants = tokio::spawn(bots.clone().follow_grants());
        bots.inner.tasks.lock().push(grants);
        Ok(bots)
    }

    /// Reads the folders again: new bots start, changed ones take their new version, those whose file is gone stop.
    /// A bad script leaves the former version running; its mistakes are logged.
    pub async fn reload(&self) {
        let Scan { found, unusable, partial, errors } = scan(&self.inner.folders);
        errors.iter().for_each(|error| tracing::error!("{error}"));
        let mut running = self.inner.running.lock().await;
        let there = |name: &String| partial || unusable.contains(name) || found.iter().any(|f| f.name == *name);
        let gone = running.keys().filter(|name| !there(name)).cloned().collect::<Vec<_>>();
        for name in gone {
            if let Some(bot) = running.remove(&name) {
                bot.stop().await;
                // Nobody is there any more: who writes to it hears that, until it comes back.
                self.jid(&name).iter().for_each(|jid| self.inner.shared.node.parts.homes.expel(jid));
                tracing::info!(bot = name, "stopped: its script is gone");
            }
        }
        let idle = unusable.into_iter().filter(|name| !running.contains_key(name)).collect::<Vec<_>>();
        let sources = found.into_iter().map(|bot| (bot.name, Some(bot.source)));
        for (name, source) in sources.chain(idle.into_iter().map(|name| (name, None))) {
            if let Err(error) = self.take(&mut running, &name, source).await {
                tracing::error!(bot = name, %error, "a bot cannot be started or changed");
            }
        }
    }

    /// Reloads whenever a file of the folders changes. Makes the folders that are not there. Fails if the system
    /// cannot watch them; then only [`Bots::reload`] reads them again.
    pub fn watch(&self) -> Result<(), StartError> {
        let changed = Arc::new(Notify::new());
        let seen = changed.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                seen.notify_one();
            }
        };
        let first = self.inner.folders.first().cloned().unwrap_or_default();
        let mut watcher = notify::recommended_watcher(on_event).map_err(|e| StartError::Watch(first, e))?;
        for folder in &self.inner.folders {
            let failed = |error| StartError::Watch(folder.clone(), error);
            std::fs::create_dir_all(folder).map_err(|error| failed(notify::Error::io(error)))?;
            watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
        }
        *self.inner.watcher.lock() = Some(watcher);
        self.inner.tasks.lock().push(tokio::spawn(self.clone().follow_folders(changed)));
        Ok(())
    }

    /// The names of the running bots, each with the version of its script.
    pub async fn list(&self) -> Vec<(String, String)> {
        let running = self.inner.running.lock().await;
        running.iter().map(|(name, bot)| (name.clone(), bot.seat.script().hash.clone())).collect()
    }

    /// Stops hearing, ends the runs, and waits until everything that they did is durable and out. What still waited
    /// lies in the store. Takes a few seconds at most: what is not out by then goes out after the next start.
    pub async fn stop(&self) {
        self.inner.watcher.lock().take();
        self.inner.tasks.lock().drain(..).for_each(|task| task.abort());
        // First, so that nobody waits any more for a run to end or for room in the queue.
        self.inner.shared.engine.stop();
        self.inner.shared.pool.close();
        if tokio::time::timeout(PATIENCE, self.stopped()).await.is_err() {
            tracing::error!("some of what bots did is not out yet; it follows after the next start");
        }
    }

    async fn stopped(&self) {
        let bots = std::mem::take(&mut *self.inner.running.lock().await);
        // Who has ended by itself does not hear it.
        bots.values().for_each(|bot| _ = bot.stop.send(true));
        for (_, bot) in bots {
            bot.stop().await;
        }
        let pool = self.inner.shared.pool.clone();
        if tokio::task::spawn_blocking(move || pool.stop()).await.is_err() {
            tracing::error!("the threads for bots did not end");
        }
        self.inner.shared.busy.done().await;
    }

    /// Has a bot run this script; without one, or if it is bad, the last good one.
    async fn take(
        &self,
        running: &mut BTreeMap<String, Running>,
        name: &str,
        source: Option<String>,
    ) -> Result<(), StoreError> {
        let Some(jid) = self.jid(name) else { return Ok(()) };
        if running.get(name).is_some_and(|bot| Some(&bot.seat.script().source) == source.as_ref()) {
            return Ok(());
        }
        let Some(script) = self.load(name, source, running.contains_key(name)).await? else { return Ok(()) };
        match running.get(name) {
            Some(bot) => bot.seat.update(script.clone()).await?,
            None => {
                let seat = Seat::open(self.inner.shared.clone(), script.clone(), jid).await?;
                let Some(place) = seat.bind().await else { return Ok(()) };
                running.insert(name.to_owned(), Running::start(seat, place));
            }
        }
        tracing::info!(bot = name, version = script.hash, "a bot runs");
        Ok(())
    }

    /// The script if it is good; else, for a bot that does not run, the last version that was.
    async fn load(&self, name: &str, source: Option<String>, runs: bool) -> Result<Option<Arc<Script>>, StoreError> {
        if let Some(source) = source {
            match self.compile(name, source).await {
                Ok(script) => return Ok(Some(script)),
                Err(errors) => errors.iter().for_each(|error| tracing::error!(bot = name, "{error}")),
            }
        }
        let Some(jid) = self.jid(name).filter(|_| !runs) else { return Ok(None) };
        let rows = Rows::new(self.inner.shared.node.parts.store.clone(), jid.as_str());
        let Some(source) = rows.current().await? else { return Ok(None) };
        tracing::warn!(bot = name, "the last good version of the script runs");
        Ok(self.compile(name, source).await.ok())
    }

    async fn compile(&self, name: &str, source: String) -> Result<Arc<Script>, Vec<crate::engine::ScriptError>> {
        let engine = self.inner.shared.engine.clone();
        let (file, name) = (format!("{name}.rhai"), name.to_owned());
        let work = tokio::task::spawn_blocking(move || engine.load(&name, &source));
        let failed = |_| Err(vec![crate::engine::ScriptError::of_file(&file, "the checker has panicked")]);
        work.await.unwrap_or_else(failed).map(Arc::new)
    }

    fn jid(&self, name: &str) -> Option<BareJid> {
        BareJid::new(name, self.inner.shared.node.parts.hosts.name(Host::Bots)).ok()
    }

    async fn follow_folders(self, changed: Arc<Notify>) {
        loop {
            changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            self.reload().await;
        }
    }

    /// A grant acts at once on bots that run.
    async fn follow_grants(self) {
        let permit = self.inner.shared.node.parts.permit.clone();
        let mut known = permit.generation();
        loop {
            tokio::time::sleep(GRANTS).await;
            if permit.generation() != known {
                known = permit.generation();
                self.inner.running.lock().await.values().for_each(|bot| bot.seat.listen());
            }
        }
    }
}

impl Running {
    fn start(seat: Arc<Seat>, place: Link) -> Running {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(seat.clone().serve(place, stopped));
        Running { seat, stop, task }
    }

    async fn stop(self) {
        // The task may have ended by itself.
        let _ = self.stop.send(true);
        if self.task.await.is_err() {
            tracing::error!("a bot has panicked");
        }
    }
}
