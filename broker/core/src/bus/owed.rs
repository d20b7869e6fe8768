//! The home's end of publications that were begun on other nodes: what durable seats here are owed of them.

use super::NodeId;
use crate::{
    node::Node,
    publication::Publication,
    topics::{Rows, SeatName, SubOptions, Subscriber},
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::sync::Arc;

/// Publications that have a place with a seat here and have not landed: by the node where each was begun, the number of
/// the seat and the id.
#[derive(Default)]
pub(super) struct Owed(Mutex<HashMap<(NodeId, u64, u64), Begun>>);

struct Begun {
    seat: SeatName,
    publication: Arc<Publication>,
    options: Vec<SubOptions>,
    stage: Stage,
}

enum Stage {
    /// Nothing is saved yet.
    Placed(Rows),
    Saving,
    /// Its node departed meanwhile: it lands as it is saved.
    SavingForNobody,
    Saved(bool),
}

impl Node {
    fn seat(&self, seat: &SeatName) -> Option<Arc<dyn Subscriber>> {
        let found = self.parts.topics.seats().find(seat.number)?;
        // Numbers begin anew with each process.
        (found.partition() == Some(&seat.owner)).then_some(found)
    }

    fn owed(&self) -> &Mutex<HashMap<(NodeId, u64, u64), Begun>> {
        &self.home().owed.0
    }

    /// Whoever has gone, or has no room, is owed nothing.
    pub(super) fn owe(
        &self,
        from: NodeId,
        seat: SeatName,
        (options, publication): (Vec<SubOptions>, Arc<Publication>),
    ) {
        let Some(rows) = self.seat(&seat).and_then(|seat| seat.store(&publication, &options)) else { return };
        let (key, stage) = ((from, seat.number, publication.id), Stage::Placed(rows));
        self.owed().lock().insert(key, Begun { seat, publication, options, stage });
    }

    /// Saves what was owed, and answers when that is done.
    pub(super) fn keep(&self, from: NodeId, number: u64, (seat, id): (SeatName, u64)) {
        let key = (from, seat.number, id);
        let rows = self.owed().lock().get_mut(&key).and_then(Begun::begins_to_save);
        let (Some(rows), Some(found)) = (rows, self.seat(&seat)) else {
            return self.answer(from, number, true);
        };
        let (home, commit) = (self.clone(), found.save(&self.parts.store, id, rows));
        tokio::spawn(async move {
            let saved = commit.await.is_ok();
            home.kept(key, saved);
            home.answer(from, number, saved);
        });
    }

    fn kept(&self, key: (NodeId, u64, u64), saved: bool) {
        let mut owed = self.owed().lock();
        let Some(begun) = owed.get_mut(&key) else { return };
        let is_for_nobody = matches!(begun.stage, Stage::SavingForNobody);
        begun.stage = Stage::Saved(saved);
        let done = if is_for_nobody { owed.remove(&key) } else { None };
        drop(owed);
        done.into_iter().for_each(|begun| self.tell(begun, saved));
    }

    /// Its turn in its topic has come.
    pub(super) fn lands(&self, from: NodeId, (seat, id): (SeatName, u64), saved: bool) {
        let begun = self.owed().lock().remove(&(from, seat.number, id));
        begun.into_iter().for_each(|begun| self.tell(begun, saved));
    }

    fn tell(&self, Begun { seat, publication, options, .. }: Begun, saved: bool) {
        let Some(seat) = self.seat(&seat) else { return };
        if saved { seat.deliver(&publication, &options) } else { seat.abandon(&publication) }
    }

    /// Something of which nothing is kept.
    pub(super) fn pass(&self, seat: &SeatName, (options, publication): (Vec<SubOptions>, Arc<Publication>)) {
        self.seat(seat).iter().for_each(|seat| seat.deliver(&publication, &options));
    }

    /// A node has gone: what it began lands if it is saved, as after a restart.
    pub(super) fn land_for(&self, gone: NodeId) {
        let settled: Vec<_> =
            self.owed().lock().extract_if(|(from, ..), begun| *from == gone && begun.settles()).collect();
        for (_, begun) in settled {
            let saved = matches!(begun.stage, Stage::Saved(true));
            self.tell(begun, saved);
        }
    }
}

impl Begun {
    /// Nobody says any more how it ends. False: that is not known before it is saved.
    fn settles(&mut self) -> bool {
        let is_saving = matches!(self.stage, Stage::Saving | Stage::SavingForNobody);
        if is_saving {
            self.stage = Stage::SavingForNobody;
        }
        !is_saving
    }

    fn begins_to_save(&mut self) -> Option<Rows> {
        match std::mem::replace(&mut self.stage, Stage::Saving) {
            Stage::Placed(rows) => Some(rows),
            other => {
                self.stage = other;
                None
            }
        }
    }
}
