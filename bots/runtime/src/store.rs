//! A bot's rows: conversations, script versions, outgoing actions, publications that wait.
//!
//! All are records of one owner, the bot's bare JID, in `Table::Bot`, so that one commit holds a conversation's new
//! state, its journal and everything that has to go out. Incoming messages are rows of the owner's queue, which the
//! router writes before their sender is told so; a run deletes its row in the same commit.
//!
//! | item | value |
//! |---|---|
//! | `c/PERSON` | the conversation, JSON |
//! | `s/HASH` | the text of a script version |
//! | `v` | the hash of the newest version that could be loaded |
//! | `o/ID` | an action that may not be out yet, JSON |
//! | `t/ID` | a publication (QoS 1 or 2) whose handlers may not have run yet |
//! | `x/PERSON` | a conversation that could not be read |

use crate::conversation::{Action, Conversation};
use bytes::Bytes;
use std::{collections::BTreeSet, sync::Arc};
use tavi_core::Publication;
use tavi_store::{Commit, Expect, Op, Owner, SharedStore, StoreError, Table};

/// How many rows are read at once.
const PAGE: usize = 256;

/// The rows of one bot.
#[derive(Clone)]
pub struct Rows {
    store: SharedStore,
    owner: Owner,
}

impl Rows {
    /// Those of the bot with this bare JID.
    pub fn new(store: SharedStore, jid: &str) -> Rows {
        Rows { store, owner: Owner::account(jid) }
    }

    /// The partition.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Hands in operations; see [`tavi_store::Store::commit`].
    pub fn commit(&self, ops: Vec<Op>) -> Commit {
        self.store.commit(&self.owner, ops)
    }

    /// A person's conversation; a new one if there is none.
    pub async fn conversation(&self, person: &str) -> Result<Kept, StoreError> {
        let item = format!("c/{person}");
        let Some(record) = self.store.load(&self.owner, Table::Bot, &item).await? else { return Ok(Kept::default()) };
        Ok(match Conversation::decode(&record.value) {
            Some(conversation) => Kept { conversation, damaged: None },
            None => Kept { conversation: Conversation::default(), damaged: Some(record.value) },
        })
    }

    /// Everybody's conversations. One that cannot be read is logged; it begins anew when its person writes.
    pub async fn conversations(&self) -> Result<Vec<(String, Conversation)>, StoreError> {
        let decode = |(person, value): (String, Bytes)| {
            let conversation = Conversation::decode(&value);
            if conversation.is_none() {
                tracing::error!(bot = self.owner.name(), person, "what the bot knows of a person is damaged");
            }
            Some((person, conversation?))
        };
        Ok(self.all("c/").await?.into_iter().filter_map(decode).collect())
    }

    /// The text of a script version.
    pub async fn script(&self, hash: &str) -> Result<Option<String>, StoreError> {
        let record = self.store.load(&self.owner, Table::Bot, &format!("s/{hash}")).await?;
        Ok(record.and_then(|record| String::from_utf8(record.value.to_vec()).ok()))
    }

    /// The newest version that could be loaded.
    pub async fn current(&self) -> Result<Option<String>, StoreError> {
        let Some(record) = self.store.load(&self.owner, Table::Bot, "v").await? else { return Ok(None) };
        match std::str::from_utf8(&record.value) {
            Ok(hash) => self.script(hash).await,
            Err(_) => {
                tracing::error!(bot = self.owner.name(), "the name of the bot's last good version is damaged");
                Ok(None)
            }
        }
    }

    /// The hashes of the stored script versions.
    pub async fn scripts(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.all("s/").await?.into_iter().map(|(hash, _)| hash).collect())
    }

    /// Actions that were committed and may not be out yet, oldest first. A damaged row is left out.
    pub async fn outgoing(&self) -> Result<Vec<Outgoing>, StoreError> {
        let decode = |(id, value): (String, Bytes)| {
            Some(Outgoing { id: id.parse().ok()?, action: serde_json::from_slice(&value).ok()? })
        };
        Ok(self.all("o/").await?.into_iter().filter_map(decode).collect())
    }

    /// Publications whose handlers may not have run, oldest first, without those that `skip` has: a page of them, and
    /// none only if there are none. A damaged row is logged and deleted.
    pub async fn publications(&self, skip: &BTreeSet<u64>) -> Result<Vec<Arc<Publication>>, StoreError> {
        let (mut found, mut after) = (Vec::new(), "t/".to_owned());
        while found.is_empty() {
            let page = self.page("t/", &after, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            after = format!("t/{last}");
            for (id, value) in page {
                let known = id.parse().is_ok_and(|id| skip.contains(&id));
                match Publication::decode(value) {
                    _ if known => {}
                    Some(publication) => found.push(Arc::new(publication)),
                    None => {
                        tracing::error!(bot = self.owner.name(), id, "a publication that waited for a bot is damaged");
                        self.commit(vec![delete(format!("t/{id}"))]).await?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// All items that begin with `prefix`, without it.
    async fn all(&self, prefix: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let (mut found, mut after) = (Vec::new(), prefix.to_owned());
        loop {
            let page = self.page(prefix, &after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            after = format!("{prefix}{last}");
            found.extend(page);
        }
    }

    /// At most `limit` items behind `after` that begin with `prefix`, without it.
    async fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<(String, Bytes)>, StoreError> {
        let page = self.store.list(&self.owner, Table::Bot, Some(after), limit).await?;
        let rest = page.into_iter().map_while(|(item, record)| {
            let name = item.strip_prefix(prefix)?;
            Some((name.to_owned(), record.value))
        });
        Ok(rest.collect())
    }
}

/// A conversation as the store has it.
#[derive(Debug, Default)]
pub struct Kept {
    /// What was saved; a new one if that cannot be read.
    pub conversation: Conversation,
    /// The bytes that cannot be read.
    pub damaged: Option<Bytes>,
}

/// An action with the id that makes its stanza the same however often it is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Drawn by the broker's id source.
    pub id: u64,
    /// What is to go out.
    pub action: Action,
}

impl Outgoing {
    /// Keeps it until it is out.
    pub fn put(&self) -> Op {
        // Plain JSON always serialises.
        put(format!("o/{:020}", self.id), serde_json::to_vec(&self.action).unwrap_or_default())
    }

    /// It is out.
    pub fn delete(&self) -> Op {
        delete(format!("o/{:020}", self.id))
    }
}

/// Saves a conversation.
pub fn put_conversation(person: &str, conversation: &Conversation) -> Op {
    put(format!("c/{person}"), conversation.encode())
}

/// Deletes what all bots know of a person who is no more, so that nobody who gets the name next hears of it.
///
/// # Errors
/// If the store fails; it may be called again.
pub async fn forget(store: &SharedStore, person: &str) -> Result<(), StoreError> {
    let items = [format!("c/{person}"), format!("x/{person}")];
    let mut after = None::<(Owner, Box<str>)>;
    loop {
        let rows = store.scan(Table::Bot, after.as_ref().map(|(owner, item)| (owner, &**item)), PAGE).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        after = Some((last.owner.clone(), last.item.clone()));
        for row in rows.iter().filter(|row| items.iter().any(|item| **item == *row.item)) {
            store.commit(&row.owner, vec![delete(row.item.to_string())]).await?;
        }
    }
}

/// Sets aside what cannot be read, for whoever wants to look at it.
pub fn put_damaged(person: &str, value: Bytes) -> Op {
    put(format!("x/{person}"), value.to_vec())
}

/// Keeps a script version for the dialogues that wait on it.
pub fn put_script(hash: &str, source: &str) -> Op {
    put(format!("s/{hash}"), source.as_bytes().to_vec())
}

/// Names the newest version.
pub fn put_current(hash: &str) -> Op {
    put("v".into(), hash.as_bytes().to_vec())
}

/// Nobody waits on this version any more.
pub fn delete_script(hash: &str) -> Op {
    delete(format!("s/{hash}"))
}

/// Keeps a publication until its handlers have run.
pub fn put_publication(publication: &Publication) -> Op {
    let value = publication.encode();
    Op::Put { table: Table::Bot, item: publication_item(publication.id), value, expect: Expect::Any }
}

/// The handlers of a publication have run.
pub fn delete_publication(id: u64) -> Op {
    Op::Delete { table: Table::Bot, item: publication_item(id), expect: Expect::Any }
}

fn publication_item(id: u64) -> Box<str> {
    format!("t/{id:020}").into()
}

fn put(item: String, value: Vec<u8>) -> Op {
    Op::Put { table: Table::Bot, item: item.into(), value: value.into(), expect: Expect::Any }
}

fn delete(item: String) -> Op {
    Op::Delete { table: Table::Bot, item: item.into(), expect: Expect::Any }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tavi_store::MemoryStore;

    #[tokio::test]
    async fn rows_are_found_by_their_kind() {
        let rows = Rows::new(Arc::new(MemoryStore::default()), "lamp@bots.localhost");
        let action = |to: &str| Action::Message { to: to.into(), text: "hi".into(), expected: None };
        let outgoing: Vec<_> = (1..=300).map(|id| Outgoing { id, action: action("a@b") }).collect();
        rows.commit(outgoing.iter().map(Outgoing::put).collect()).await.unwrap();
        let ops = vec![put_conversation("a@b", &Conversation::default()), put_script("12", "fn f() {}")];
        rows.commit(ops).await.unwrap();
        assert_eq!(rows.outgoing().await.unwrap(), outgoing);
        assert_eq!(rows.conversations().await.unwrap().len(), 1);
        assert_eq!(rows.script("12").await.unwrap().as_deref(), Some("fn f() {}"));
        assert_eq!(rows.scripts().await.unwrap(), ["12"]);
        assert!(rows.publications(&BTreeSet::new()).await.unwrap().is_empty());
        rows.commit(vec![outgoing[0].delete(), delete_script("12")]).await.unwrap();
        assert_eq!(rows.outgoing().await.unwrap().len(), 299);
        assert!(rows.scripts().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn all_bots_forget_a_person_and_nobody_else() {
        let store: SharedStore = Arc::new(MemoryStore::default());
        let bots = ["lamp@bots.localhost", "oven@bots.localhost"].map(|jid| Rows::new(store.clone(), jid));
        for bot in &bots {
            let people = ["a@b", "aa@b"].map(|person| put_conversation(person, &Conversation::default()));
            bot.commit(people.into_iter().chain([put_damaged("a@b", Bytes::from_static(b"x"))]).collect())
                .await
                .unwrap();
        }
        forget(&store, "a@b").await.unwrap();
        for bot in &bots {
            assert_eq!(bot.conversations().await.unwrap(), [("aa@b".to_owned(), Conversation::default())]);
            assert!(bot.all("x/").await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn a_damaged_row_hides_no_other() {
        let rows = Rows::new(Arc::new(MemoryStore::default()), "lamp@bots.localhost");
        let broken = |item: &str| put(item.into(), b"{#".to_vec());
        let good = put_conversation("b@c", &Conversation::default());
        rows.commit(vec![broken("c/a@b"), good, put("v".into(), vec![0xff]), broken("t/00000000000000000007")])
            .await
            .unwrap();
        assert_eq!(rows.conversations().await.unwrap(), [("b@c".to_owned(), Conversation::default())]);
        let kept = rows.conversation("a@b").await.unwrap();
        assert_eq!((kept.conversation, kept.damaged.as_deref()), (Conversation::default(), Some(&b"{#"[..])));
        assert_eq!(rows.current().await.unwrap(), None);
        assert!(rows.publications(&BTreeSet::new()).await.unwrap().is_empty());
        assert!(rows.all("t/").await.unwrap().is_empty(), "it is gone");
    }
}
