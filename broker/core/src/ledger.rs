//! Which of an account's messages are owed to which of its sessions: each goes to another session, or is kept, only
//! when the last one that had it is gone and none has acknowledged it.

use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tavi_store::Commit;

/// One message.
#[derive(Debug, Default)]
struct Entry {
    /// The numbers of the sessions that it is owed to.
    holders: SmallVec<[u64; 2]>,
    /// Its row's size, if it has or gets one.
    row: Option<usize>,
    /// Its commit has not landed.
    coming: bool,
}

/// The messages of one account that somebody has, and the rows that are about to go.
#[derive(Default)]
pub(crate) struct Ledger {
    owed: BTreeMap<u64, Entry>,
    deleting: VecDeque<(Commit, Vec<u64>)>,
    /// Rows that a page which is being read may still have.
    gone: HashSet<u64>,
    /// Pages that are being read.
    reads: usize,
    /// Rows that are gone for good since it was asked.
    deleted: Vec<u64>,
}

/// What was settled: whether there is a row to be deleted, of which size, and who had it.
pub(crate) struct Settled {
    pub(crate) holders: SmallVec<[u64; 2]>,
    pub(crate) row: Option<usize>,
}

impl Ledger {
    /// Notes a message and to whom it is owed. `coming`: its commit has not landed.
    pub(crate) fn owe(&mut self, id: u64, holders: &[u64], row: Option<usize>, coming: bool) {
        self.owed.insert(id, Entry { holders: holders.into(), row, coming });
    }

    /// Whether its row is on its way.
    pub(crate) fn is_being_stored(&self, id: u64) -> bool {
        self.owed.get(&id).is_some_and(|entry| entry.row.is_some() && entry.coming)
    }

    /// It was decided to store a message that somebody has.
    pub(crate) fn store(&mut self, id: u64, row: usize) {
        if let Some(entry) = self.owed.get_mut(&id) {
            (entry.row, entry.coming) = (Some(row), true);
        }
    }

    /// The commit of a message has landed: whose it is. One that is nobody's stays in the store and is forgotten here.
    pub(crate) fn landed(&mut self, id: u64) -> SmallVec<[u64; 2]> {
        let Some(entry) = self.owed.get_mut(&id) else { return SmallVec::new() };
        entry.coming = false;
        let holders = entry.holders.clone();
        if holders.is_empty() {
            self.owed.remove(&id);
        }
        holders
    }

    /// It is settled, in whatever way.
    pub(crate) fn settle(&mut self, id: u64) -> Option<Settled> {
        self.owed.remove(&id).map(|entry| Settled { holders: entry.holders, row: entry.row })
    }

    /// Messages that will be stored and are nobody's yet: now they are this session's.
    pub(crate) fn take_coming(&mut self, session: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        for (id, entry) in self.owed.iter_mut().filter(|(_, entry)| entry.coming && entry.holders.is_empty()) {
            entry.holders.push(session);
            taken.push(*id);
        }
        taken
    }

    /// A stored row that was read for a session: whether it may have it.
    pub(crate) fn take_row(&mut self, id: u64, session: u64, size: usize) -> bool {
        if self.gone.contains(&id) {
            return false;
        }
        match self.owed.get(&id) {
            Some(entry) => entry.holders.contains(&session),
            None => {
                self.owe(id, &[session], Some(size), false);
                true
            }
        }
    }

    /// Whether it is this session's.
    pub(crate) fn is_owed(&self, id: u64, session: u64) -> bool {
        self.owed.get(&id).is_some_and(|entry| entry.holders.contains(&session))
    }

    /// A session gives up one message; whether nobody has it any more.
    pub(crate) fn release_one(&mut self, id: u64, session: u64) -> bool {
        let Some(entry) = self.owed.get_mut(&id) else { return false };
        entry.holders.retain(|holder| *holder != session);
        let last = entry.holders.is_empty();
        if last {
            self.owed.remove(&id);
        }
        last
    }

    /// A message is owed to one more session; false if it is not known.
    pub(crate) fn add_holder(&mut self, id: u64, session: u64) -> bool {
        let entry = self.owed.get_mut(&id);
        entry.map(|entry| entry.holders.push(session)).is_some()
    }

    /// A session is gone: the messages that nobody has any more, and whether each has a row and is still coming.
    pub(crate) fn release(&mut self, session: u64) -> Vec<(u64, Option<usize>, bool)> {
        let mut free = Vec::new();
        for (id, entry) in &mut self.owed {
            let before = entry.holders.len();
            entry.holders.retain(|holder| *holder != session);
            if before > 0 && entry.holders.is_empty() {
                free.push((*id, entry.row, entry.coming));
            }
        }
        // One that is coming is found when it lands.
        self.owed.retain(|_, entry| entry.coming || !entry.holders.is_empty());
        free
    }

    /// Rows that are being deleted; `commit` is that of the deletion.
    pub(crate) fn deleting(&mut self, ids: Vec<u64>, commit: Commit) {
        self.gone.extend(&ids);
        self.deleting.push_back((commit, ids));
        self.tidy();
    }

    /// Whether nothing is owed, read or being deleted.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.tidy();
        self.owed.is_empty() && self.reads == 0 && self.deleting.is_empty()
    }

    /// Rows that are gone for good since this was asked.
    pub(crate) fn take_deleted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.deleted)
    }

    /// A page is about to be read.
    pub(crate) fn begin_read(&mut self) {
        self.tidy();
        self.reads += 1;
    }

    /// It was read, and looked through.
    pub(crate) fn end_read(&mut self) {
        self.reads -= 1;
    }

    /// Forgets what is deleted: a page that is read from now on does not have it.
    fn tidy(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while self.reads == 0
            && let Some((commit, _)) = self.deleting.front_mut()
            && let Poll::Ready(_) = Pin::new(commit).poll(&mut cx)
        {
            let Some((_, ids)) = self.deleting.pop_front() else { break };
            for id in &ids {
                self.gone.remove(id);
            }
            self.deleted.extend(ids);
        }
        if self.gone.is_empty() && self.deleting.is_empty() {
            (self.gone, self.deleting) = (HashSet::new(), VecDeque::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_deleted_is_remembered_as_long_as_a_page_may_still_have_it() {
        let mut ledger = Ledger::default();
        ledger.owe(1, &[7], Some(10), false);
        ledger.begin_read();
        assert!(ledger.settle(1).is_some());
        ledger.deleting(vec![1], Commit::ready(Ok(())));
        ledger.begin_read();
        assert!(!ledger.take_row(1, 8, 10), "both pages may have it");
        ledger.end_read();
        assert!(!ledger.take_row(1, 8, 10));
        ledger.end_read();
        assert!(ledger.is_idle());
        assert_eq!(ledger.take_deleted(), [1]);
        assert!(ledger.gone.is_empty());
    }

    #[test]
    fn it_is_idle_when_nothing_is_owed_read_or_being_deleted() {
        let mut ledger = Ledger::default();
        assert!(ledger.is_idle());
        ledger.owe(1, &[], Some(10), true);
        assert!(!ledger.is_idle(), "it will be somebody's");
        assert!(ledger.release(7).is_empty() && !ledger.is_idle());
        assert!(ledger.landed(1).is_empty() && ledger.is_idle());
        ledger.begin_read();
        assert!(!ledger.is_idle());
        ledger.end_read();
        let (slot, commit) = Commit::pending();
        ledger.deleting(vec![2], commit);
        assert!(!ledger.is_idle());
        slot.resolve(Ok(()));
        assert!(ledger.is_idle());
    }
}
