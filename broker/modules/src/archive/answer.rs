//! Answers to queries: pages of the archive, and what it begins and ends with (XEP-0313 §4.2, §4.3, §5).

use super::{
    Archive,
    ids::IdKey,
    query::{self, Filter, Query},
    settings::Settings,
};
use crate::paging;
use bytes::Bytes;
use std::{collections::VecDeque, sync::Arc};
use tavi_core::{
    Account, Effect, Effects, Envelope,
    clock::xmpp_time,
    homes::SeatId,
    hooks::{BoxFuture, Handle, Iq, IqPayload, Reply},
};
use tavi_store::{ArchiveQuery, ArchiveRow, StoreError, id};
use tavi_xmpp_proto::{
    Condition, Element, Jid, MessageType, Stanza, StanzaError, element::escape_attr, ns, stanza::Head,
};

/// Rows that are read at once.
const STEP: usize = 64;
/// No further message behind so many bytes of one page.
const PAGE_BYTES: usize = 1 << 20;

impl Handle<Query> for Archive {
    fn handle(&self, iq: Iq<Query>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            if !iq.is_set() {
                return Ok(query::query_form().into());
            }
            let account = iq.account()?;
            let (key, seat) = account.at_home(|state| {
                let seat = iq.from().and_then(|from| state.session_at(from)).map(|session| session.seat());
                (Settings::of(state).and_then(|settings| settings.key().cloned()), seat)
            });
            let reader = Reader { archive: self, account, key };
            let found = reader.find(&iq.payload).await?;
            let mut reply = Reply::from(reader.fin(&found));
            if let (Some(seat), Some(to)) = (seat, iq.from()) {
                reader.deliver(&iq.payload, found, (seat, to), &mut reply.fx);
            }
            Ok(reply)
        })
    }

    /// XEP-0313 §6.1.
    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}

/// XEP-0313 §5.
pub(super) struct Metadata;

impl IqPayload for Metadata {
    const NS: &'static str = ns::MAM;
    const NAME: &'static str = "metadata";

    fn parse(_: &Element) -> Result<Metadata, StanzaError> {
        Ok(Metadata)
    }
}

impl Handle<Metadata> for Archive {
    fn handle(&self, iq: Iq<Metadata>) -> BoxFuture<'_, Result<Reply, StanzaError>> {
        Box::pin(async move {
            if iq.is_set() {
                return Err(Condition::BadRequest.into());
            }
            let account = iq.account()?;
            let key = account.at_home(|state| Settings::of(state).and_then(|settings| settings.key().cloned()));
            let reader = Reader { archive: self, account, key };
            let mut metadata = Element::new(ns::MAM, "metadata");
            for (name, newest) in [("start", false), ("end", true)] {
                let rows = reader.read(&ArchiveQuery { newest, limit: 1, ..ArchiveQuery::default() }).await?;
                metadata = metadata.children(rows.first().map(|row| {
                    let end = Element::new(ns::MAM, name).attr("id", reader.id_of(row.id));
                    end.attr("timestamp", xmpp_time(id::time_of(row.id)))
                }));
            }
            Ok(metadata.into())
        })
    }

    fn not_yours(&self) -> StanzaError {
        Condition::Forbidden.into()
    }
}

/// One account's archive.
struct Reader<'a> {
    archive: &'a Archive,
    account: &'a Arc<Account>,
    /// An account without one has archived nothing.
    key: Option<IdKey>,
}

/// A page.
struct Found {
    rows: VecDeque<ArchiveRow>,
    /// Nothing more matches in the direction of the page.
    complete: bool,
}

impl Reader<'_> {
    async fn find(&self, query: &Query) -> Result<Found, StanzaError> {
        let (filter, page) = (&query.filter, &query.page);
        let mut range = self.range(filter).await?;
        if let Some(after) = &page.after {
            range.after = range.after.max(Some(self.number(after).await?));
        }
        if let Some(Some(before)) = &page.before {
            range.before = least(range.before, self.number(before).await?);
        }
        range.newest = page.before.is_some();
        let full = filter.with.as_ref().filter(|with| !with.is_bare());
        let keep = |row: &ArchiveRow| full.is_none_or(|with| is_with(row, with));
        match &filter.ids {
            None => self.walk(range, keep, page.max).await,
            Some(ids) => {
                let rows = self.named(ids).await?;
                let rows = rows.into_iter().filter(|row| is_in(row, &range) && keep(row)).collect();
                Ok(Found::cut(rows, &range, page.max))
            }
        }
    }

    /// What the form wants.
    async fn range(&self, filter: &Filter) -> Result<ArchiveQuery, StanzaError> {
        let mut range =
            ArchiveQuery { with: filter.with.as_ref().map(|with| with.bare().into()), ..Default::default() };
        range.after = filter.start.map(|ms| id::first_at(ms).saturating_sub(1));
        range.before = filter.end.map(|ms| id::first_at(ms.saturating_add(1)));
        if let Some(after) = &filter.after {
            range.after = range.after.max(Some(self.number(after).await?));
        }
        if let Some(before) = &filter.before {
            range.before = least(range.before, self.number(before).await?);
        }
        Ok(range)
    }

    /// The page, read step by step: whoever waits for the thread does not wait for the whole of it.
    async fn walk(
        &self,
        mut range: ArchiveQuery,
        keep: impl Fn(&ArchiveRow) -> bool,
        max: usize,
    ) -> Result<Found, StanzaError> {
        let (mut rows, mut bytes) = (VecDeque::new(), 0);
        loop {
            range.limit = (max + 1 - rows.len()).clamp(2, STEP);
            let mut step = self.read(&range).await?;
            let (Some(first), Some(last)) = (step.first(), step.last()) else {
                return Ok(Found { rows, complete: true });
            };
            (range.before, range.after) =
                if range.newest { (Some(first.id), range.after) } else { (range.before, Some(last.id)) };
            if range.newest {
                step.reverse();
            }
            for row in step.into_iter().filter(&keep) {
                if rows.len() == max || bytes >= PAGE_BYTES {
                    return Ok(Found { rows, complete: false });
                }
                bytes += row.value.len();
                if range.newest { rows.push_front(row) } else { rows.push_back(row) }
            }
            tokio::task::yield_now().await;
        }
    }

    /// XEP-0313 §4.1.3: certain messages, in the order of the archive.
    async fn named(&self, ids: &[String]) -> Result<Vec<ArchiveRow>, StanzaError> {
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            rows.push(self.row(id).await?);
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        Ok(rows)
    }

    async fn number(&self, text: &str) -> Result<u64, StanzaError> {
        self.row(text).await.map(|row| row.id)
    }

    /// XEP-0313 §4.1.3, §4.3.2: an id that is not in the archive is an error.
    async fn row(&self, text: &str) -> Result<ArchiveRow, StanzaError> {
        let number = self.key.as_ref().and_then(|key| key.number(text)).ok_or(Condition::ItemNotFound)?;
        let one = ArchiveQuery {
            after: Some(number - 1),
            before: number.checked_add(1),
            limit: 1,
            ..ArchiveQuery::default()
        };
        self.read(&one).await?.pop().ok_or_else(|| Condition::ItemNotFound.into())
    }

    async fn read(&self, query: &ArchiveQuery) -> Result<Vec<ArchiveRow>, StanzaError> {
        self.archive.store.archive(&self.account.owner, query).await.map_err(unreadable)
    }

    fn id_of(&self, number: u64) -> String {
        self.key.as_ref().map(|key| key.text(number)).unwrap_or_default()
    }

    /// XEP-0313 §4.3: what the page begins and ends with.
    fn fin(&self, found: &Found) -> Element {
        let id = |row: Option<&ArchiveRow>| row.map(|row| self.id_of(row.id));
        let set = paging::ends(id(found.rows.front()), id(found.rows.back()));
        Element::new(ns::MAM, "fin").attr_opt("complete", found.complete.then_some("true")).child(set)
    }

    /// The messages of a page, for the asker's session alone.
    fn deliver(&self, query: &Query, found: Found, (seat, to): (SeatId, &Jid), fx: &mut Effects) {
        let mut rows: Vec<ArchiveRow> = found.rows.into();
        if query.flip {
            rows.reverse();
        }
        for row in rows {
            let head = Head::message(MessageType::Normal).from(&self.account.jid).to(to.clone());
            let envelope: Envelope = Stanza::new(head, []).into();
            let mut envelope = envelope.as_copy();
            envelope.add_fragment(self.result(query.id.as_deref(), &row));
            fx.push(Effect::Deliver { seat: seat.clone(), envelope });
        }
    }

    /// XEP-0313 §4.2: the stored bytes go out as they are, in the namespace of client streams.
    fn result(&self, query: Option<&str>, row: &ArchiveRow) -> Bytes {
        let mut out = Vec::with_capacity(row.value.len() + 320);
        out.extend_from_slice(b"<result xmlns='urn:xmpp:mam:2' id='");
        out.extend_from_slice(self.id_of(row.id).as_bytes());
        if let Some(query) = query {
            out.extend_from_slice(b"' queryid='");
            escape_attr(&mut out, query);
        }
        out.extend_from_slice(b"'><forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' stamp='");
        out.extend_from_slice(xmpp_time(id::time_of(row.id)).as_bytes());
        out.extend_from_slice(b"'/>");
        if let Some(rest) = row.value.strip_prefix(b"<message") {
            out.extend_from_slice(b"<message xmlns='jabber:client'");
            out.extend_from_slice(rest);
        }
        out.extend_from_slice(b"</forwarded></result>");
        out.into()
    }
}

impl Found {
    /// A page of rows that were read already.
    fn cut(rows: Vec<ArchiveRow>, range: &ArchiveQuery, max: usize) -> Found {
        let complete = rows.len() <= max;
        let skip = if range.newest { rows.len().saturating_sub(max) } else { 0 };
        Found { rows: rows.into_iter().skip(skip).take(max).collect(), complete }
    }
}

fn least(a: Option<u64>, b: u64) -> Option<u64> {
    Some(a.map_or(b, |a| a.min(b)))
}

fn is_in(row: &ArchiveRow, range: &ArchiveQuery) -> bool {
    range.after.is_none_or(|after| row.id > after)
        && range.before.is_none_or(|before| row.id < before)
        && range.with.as_ref().is_none_or(|with| row.with == *with)
}

/// XEP-0313 §4.1.1: with a resource, the address itself has to be the sender or the recipient.
fn is_with(row: &ArchiveRow, with: &Jid) -> bool {
    let Ok(stanza) = Stanza::parse(&row.value) else { return false };
    [&stanza.head.from, &stanza.head.to].into_iter().flatten().any(|jid| jid == with)
}

fn unreadable(error: StoreError) -> StanzaError {
    tracing::error!(%error, "an archive could not be read");
    Condition::InternalServerError.into()
}
