//! MQTT sessions as an administrator sees and ends them: the broker's side of the admin API, and `tavi session`.

use crate::cli::{Running, SessionCommand};
use anyhow::Result;
use serde::Serialize;
use std::sync::Arc;
use tavi_enrol::{
    admin::{ApiError, ErrorCode, Removed, SessionDetail, SessionFilter, SessionList, SessionRow},
    route::ListQuery,
};
use tavi_fleet::Client;
use tavi_mqtt::{Hub, entry::Key, operator::SessionInfo};

type Outcome<T> = Result<T, ApiError>;

/// Subscriptions that one answer shows.
const FILTERS: usize = 1000;

/// A page of the sessions.
pub fn list(hub: &Hub, query: &ListQuery) -> Outcome<SessionList> {
    let bad = |after: &str| ApiError::new(ErrorCode::BadRequest, format!("{after:?} is no ADDRESS/CLIENT"));
    let key = |after: &str| after.split_once('/').map(|(a, c)| (a.into(), c.into())).ok_or_else(|| bad(after));
    let after: Option<Key> = query.after.as_deref().map(key).transpose()?;
    let sessions = hub.sessions(query.subject.as_deref(), after.as_ref(), query.rows());
    let last = sessions.last().filter(|_| sessions.len() == query.rows());
    let next = last.map(|last| format!("{}/{}", last.key.0, last.key.1));
    Ok(SessionList { sessions: sessions.into_iter().map(row).collect(), next })
}

/// One session.
pub fn show(hub: &Hub, subject: String, client: String) -> Outcome<SessionDetail> {
    let key = (subject.into(), client.into());
    let (session, mut filters) = hub.session(&key).ok_or_else(|| missing(&key))?;
    filters.truncate(FILTERS);
    let filter = |(filter, options): (Box<str>, tavi_core::topics::SubOptions)| SessionFilter {
        filter: filter.into(),
        qos: options.qos as u8,
    };
    Ok(SessionDetail { session: row(session), filters: filters.into_iter().map(filter).collect() })
}

/// Ends a session.
pub async fn end(hub: &Arc<Hub>, subject: String, client: String) -> Outcome<Removed> {
    let key = (subject.into(), client.into());
    let ended = hub.end_session(&key).ok_or_else(|| missing(&key))?;
    ended.complete().await.map_err(crate::people::store_failed)?;
    Ok(Removed { removed: format!("{} {}", key.0, key.1) })
}

fn missing((subject, client): &Key) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("{subject} has no MQTT session with the client id {client:?}"))
        .hint("tavi session list shows them")
}

fn row(info: SessionInfo) -> SessionRow {
    let count = |n: usize| n as u64;
    SessionRow {
        subject: info.key.0.into(),
        client: info.key.1.into(),
        connected: info.connected,
        durable: info.durable,
        ends_in: info.ends_in_ms.map(|ms| ms / 1000),
        subscriptions: info.subscriptions.map(count),
        stored: info.stored.rows,
        stored_bytes: info.stored.bytes,
        waiting: count(info.waiting),
        will: info.will,
    }
}

/// Runs one command.
pub fn run(command: SessionCommand) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(execute(command))
}

async fn execute(command: SessionCommand) -> Result<()> {
    match command {
        SessionCommand::List { of, limit, after, running } => {
            let query = ListQuery { after, limit: limit.map(usize::from), subject: of };
            let list = all(&Client::new(&running.data), query).await?;
            print(&running, &list, || list_lines(&list));
        }
        SessionCommand::Show { address, client, running } => {
            let session = Client::new(&running.data).session(&address, &client).await?;
            print(&running, &session, || detail_lines(&session));
        }
        SessionCommand::End { address, client, running } => {
            let ended = Client::new(&running.data).end_session(&address, &client).await?;
            print(&running, &ended, || format!("ended {}", ended.removed));
        }
    }
    Ok(())
}

/// The page that was asked for; all of them if none was.
async fn all(client: &Client, mut query: ListQuery) -> Result<SessionList> {
    let mut all = client.sessions_page(&query).await?;
    let pages = query.limit.is_none();
    while pages && let Some(next) = all.next.take() {
        query.after = Some(next);
        let page = client.sessions_page(&query).await?;
        all.sessions.extend(page.sessions);
        all.next = page.next;
    }
    Ok(all)
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(running: &Running, answer: &impl Serialize, text: impl FnOnce() -> String) {
    match serde_json::to_string(answer) {
        Ok(json) if running.json => println!("{json}"),
        _ => println!("{}", text()),
    }
}

fn list_lines(list: &SessionList) -> String {
    if list.sessions.is_empty() {
        return "no MQTT sessions".into();
    }
    let more = list.next.iter().map(|next| format!("more: --after {next:?}"));
    list.sessions.iter().map(line).chain(more).collect::<Vec<_>>().join("\n")
}

fn line(session: &SessionRow) -> String {
    let SessionRow { subject, client, stored, stored_bytes, .. } = session;
    let state = match (session.connected, session.ends_in) {
        (true, _) if session.durable => "connected, durable".into(),
        (true, _) => "connected".into(),
        (false, Some(seconds)) => format!("away, ends in {seconds} s"),
        (false, None) => "away, never ends".into(),
    };
    let subscriptions = session.subscriptions.map(|n| format!(", {n} subscriptions")).unwrap_or_default();
    let kept = if *stored > 0 { format!(", {stored} stored ({stored_bytes} bytes)") } else { String::new() };
    let will = if session.will { ", with a will" } else { "" };
    // A client id may have any characters.
    format!("{subject}  {client:?}  {state}{subscriptions}{kept}{will}")
}

fn detail_lines(detail: &SessionDetail) -> String {
    let filter = |f: &SessionFilter| format!("  qos {}  {:?}", f.qos, f.filter);
    let total = detail.session.subscriptions.unwrap_or_default();
    let more = total.saturating_sub(detail.filters.len() as u64);
    let more = (more > 0).then(|| format!("  and {more} more"));
    let filters = detail.filters.iter().map(filter);
    [line(&detail.session)].into_iter().chain(filters).chain(more).collect::<Vec<_>>().join("\n")
}
