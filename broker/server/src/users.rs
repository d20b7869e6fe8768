//! `tavi user`: through the running broker's socket, else in the closed store.

use crate::{
    cli::{Place, UserCommand},
    config::Config,
    data, people,
    removal::Removals,
    serve,
    streams::Streams,
};
use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use std::{future::Future, io::BufRead, sync::Arc};
use tavi_core::Node;
use tavi_enrol::{
    Secret,
    admin::{ApiError, ErrorCode, NewPassword, NewUser, Removed, UserList, UserPassword},
};
use tavi_fleet::Client;
use tavi_store_kv::{Engine, KvStore, Options};

/// Runs one command.
pub fn run(command: UserCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(execute(command))
}

async fn execute(command: UserCommand) -> Result<()> {
    match command {
        UserCommand::Add { jid, password_stdin, place } => {
            let user = NewUser { jid, password: read_password(password_stdin)? };
            let made = match reach(&place).await? {
                Reached::Running(client) => client.add_user(&user).await?,
                Reached::Closed(store) => {
                    store.with(|node| async move { people::add(&node.parts, user).await }).await?
                }
            };
            show(&place, &made, || password_lines(&made, "added"));
        }
        UserCommand::Passwd { jid, password_stdin, place } => {
            let new = NewPassword { password: read_password(password_stdin)? };
            let changed = match reach(&place).await? {
                Reached::Running(client) => client.set_password(&jid, &new).await?,
                Reached::Closed(store) => {
                    store.with(|node| async move { people::set_password(&node.parts, &jid, new).await }).await?
                }
            };
            show(&place, &changed, || password_lines(&changed, "changed"));
        }
        UserCommand::List { place } => {
            let list = match reach(&place).await? {
                Reached::Running(client) => client.users().await?,
                Reached::Closed(store) => store.with(|node| async move { people::list_all(&node.parts).await }).await?,
            };
            show(&place, &list, || list_lines(&list));
        }
        UserCommand::Remove { jid, place } => {
            let removed: Removed = match reach(&place).await? {
                Reached::Running(client) => client.remove_user(&jid).await?,
                Reached::Closed(store) => {
                    let streams = Streams::of(&store.config.data);
                    store.with(|node| async move { remove(node, streams, &jid).await }).await?
                }
            };
            show(&place, &removed, || format!("removed {}", removed.removed));
        }
    }
    Ok(())
}

enum Reached {
    Running(Client),
    Closed(Box<Closed>),
}

/// A data folder that no broker uses; locked.
struct Closed {
    config: Config,
    _lock: data::Lock,
}

/// The running broker of a data folder, or the folder itself if none runs.
async fn reach(place: &Place) -> Result<Reached> {
    if !place.data.is_dir() {
        bail!("there is no data folder {}: start a broker once, or name another with --data DIR", place.data.display());
    }
    let client = Client::new(&place.data);
    match client.status().await {
        Ok(_) => return Ok(Reached::Running(client)),
        Err(error) if error.is_not_running() => {}
        Err(error) => return Err(error.into()),
    }
    let lock =
        data::lock(&place.data).context("no broker answers on its admin socket, and the data folder is not free")?;
    Ok(Reached::Closed(Box::new(Closed { config: place.config()?, _lock: lock })))
}

/// The streams first: what they have in flight may not come to somebody who gets the name afterwards.
async fn remove(node: Node, streams: Option<Streams>, jid: &str) -> Result<Removed, ApiError> {
    let jid = people::address(&node.parts, jid)?;
    if let Some(streams) = streams {
        let failed =
            |error| ApiError::new(ErrorCode::Internal, format!("the file of streams cannot be written: {error}"));
        streams.forget(&jid).map_err(failed)?;
    }
    Removals::new(node).alone(&jid).await
}

impl Closed {
    async fn with<T, F>(self, work: impl FnOnce(Node) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, ApiError>>,
    {
        let store = open_store(&self.config)?;
        let node = serve::node(&self.config, store.clone(), Arc::new(tavi_core::Journal::none())).await?;
        let outcome = work(node).await;
        store.close();
        outcome.map_err(|error| anyhow!("{error}"))
    }
}

/// Opens the store of a data folder.
pub fn open_store(config: &Config) -> Result<Arc<KvStore>> {
    let path = config.store_path();
    let options = Options { engine: engine(config)?, cache: config.cache_bytes, ..Options::default() };
    Ok(tavi_store_kv::open(&path, &options)?)
}

/// The engine of the store: the one that was asked for, which must be that of a store that is there.
pub fn engine(config: &Config) -> Result<Engine> {
    let path = config.store_path();
    match (config.engine, tavi_store_kv::engine_of(&path)?) {
        (Some(wanted), Some(found)) if wanted != found => {
            Err(tavi_store_kv::OpenError::OtherEngine { path, found, wanted }.into())
        }
        (wanted, found) => Ok(wanted.or(found).unwrap_or_default()),
    }
}

fn read_password(from_stdin: bool) -> Result<Option<Secret>> {
    if !from_stdin {
        return Ok(None);
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the password from standard input")?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    if line.is_empty() {
        bail!("standard input holds no password: write it on its first line");
    }
    Ok(Some(Secret::from(line)))
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn show(place: &Place, answer: &impl Serialize, text: impl FnOnce() -> String) {
    match serde_json::to_string(answer) {
        Ok(json) if place.json => println!("{json}"),
        _ => println!("{}", text()),
    }
}

fn password_lines(made: &UserPassword, what: &str) -> String {
    match &made.password {
        Some(password) => format!("{what} {}\npassword (shown this once): {}", made.jid, password.expose()),
        None => format!("{what} {}", made.jid),
    }
}

fn list_lines(list: &UserList) -> String {
    if list.users.is_empty() {
        return "no accounts yet: make one with `tavi user add NAME@DOMAIN`".into();
    }
    let line = |user: &tavi_enrol::admin::UserRow| match user.sessions {
        Some(n) if n > 0 => format!("{}  ({n} online)", user.jid),
        _ => user.jid.clone(),
    };
    list.users.iter().map(line).collect::<Vec<_>>().join("\n")
}
