//! The commits that wait for the committer, and in which order it takes them.
//!
//! Most wait in one line. Those that give a row to one of many receivers of one publication (they share its body) wait
//! in a lane of that publication, and of each lane only a part goes into a group: so the fan-out to ten thousand
//! receivers neither holds up the commits of others nor other fan-outs. A group is taken slice by slice: whoever comes
//! meanwhile and is not of a lane goes with it, and ends it as soon as making it has taken as long as a flush takes, so that
//! there are no more flushes than the disk is good for. Commits of one owner keep their order: an owner that waits in a lane
//! has all its later commits there, and no commit of a lane overtakes an earlier one of the line.

use crate::{keys::Number, kv::Key};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Instant,
};
use tavi_store::{CommitSlot, Gate, Op, Owner, StoreError};
use tokio::sync::oneshot;

/// A group is closed when it has so much; its last commit may be large.
const GROUP: Size = Size { commits: 1_024, ops: 4_096, bytes: 4 << 20 };
/// A group of lanes alone is closed sooner where flushes are quick: whoever comes when it is being written has to wait.
const ALONE: Size = Size { commits: 512, ops: 2_048, bytes: 4 << 20 };
/// What lanes get in a group that has commits of the line; besides, one commit for so many of the line.
const LANES: Size = Size { commits: 64, ops: 256, bytes: 256 << 10 };
const FOR_ONE: usize = 4;
/// What lanes give before it is asked again whether anybody else waits.
const SLICE: Size = Size { commits: 128, ops: 512, bytes: 256 << 10 };
/// A lane gives so many commits before the next one has its turn.
const TURN: usize = 32;

/// How much may wait before senders are to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub commits: usize,
    pub bytes: u64,
}

/// A commit that was handed in.
pub(crate) struct Request {
    pub owner: Owner,
    pub ops: Vec<Op>,
    pub slot: CommitSlot,
    pub since: Instant,
}

/// What has become old and is to be deleted: stanzas, by owner and id, or marks of deletions.
pub(crate) enum Old {
    Stanzas(Vec<(Number, u64)>),
    Marks(Vec<Key>),
}

/// A request to delete what is old.
pub(crate) struct Expiry {
    pub old: Old,
    pub answer: oneshot::Sender<Result<usize, StoreError>>,
}

/// What the committer is to do next.
pub(crate) enum Next {
    Group(Made),
    Expire(Expiry),
    /// All is done after a stop.
    End,
}

/// All that waits.
pub(crate) struct Waiting {
    state: Mutex<State>,
    come: Condvar,
    bounds: Bounds,
    pub gate: Arc<Gate>,
}

#[derive(Default)]
struct State {
    line: VecDeque<Waiter>,
    lanes: HashMap<u64, VecDeque<Waiter>>,
    /// The lanes that have commits, in the order of their turns.
    turns: VecDeque<u64>,
    /// In which lane an owner waits, and with how many commits.
    owners: HashMap<Owner, (u64, usize)>,
    bodies: HashMap<u64, Shared>,
    expiries: VecDeque<Expiry>,
    drawn: u64,
    commits: usize,
    bytes: u64,
    stopping: bool,
}

struct Waiter {
    /// Its place among all, in the order of the hand-in.
    place: u64,
    request: Request,
    /// Its bytes, but for shared bodies.
    size: u64,
}

/// A shared body that waits: in memory once, whoever waits with it, and written with the first of them.
struct Shared {
    commits: usize,
    bytes: u64,
    written: bool,
}

/// How much a group has, or may have.
#[derive(Clone, Copy, Default)]
struct Size {
    commits: usize,
    ops: usize,
    bytes: u64,
}

/// A group in the making.
#[derive(Default)]
pub(crate) struct Made {
    /// What was not given out yet.
    requests: Vec<Request>,
    size: Size,
    /// Others than lanes have a part in it.
    has_line: bool,
}

impl Waiting {
    pub fn new(bounds: Bounds) -> Waiting {
        Waiting { state: Mutex::default(), come: Condvar::new(), bounds, gate: Arc::default() }
    }

    /// Takes a commit in; gives it back when the store is stopping.
    pub fn push(&self, request: Request) -> Result<(), Request> {
        let mut state = self.state.lock();
        if state.stopping {
            return Err(request);
        }
        state.push(request);
        self.tell(&state);
        drop(state);
        self.come.notify_one();
        Ok(())
    }

    /// As [`Waiting::push`].
    pub fn expire(&self, expiry: Expiry) -> Result<(), Expiry> {
        let mut state = self.state.lock();
        if state.stopping {
            return Err(expiry);
        }
        state.expiries.push_back(expiry);
        self.come.notify_one();
        Ok(())
    }

    /// Takes no more in.
    pub fn stop(&self) {
        self.state.lock().stopping = true;
        self.come.notify_one();
    }

    /// What is next; waits for it.
    pub fn next(&self) -> Next {
        let mut state = self.state.lock();
        loop {
            if let Some(next) = self.take(&mut state) {
                return next;
            }
            self.come.wait(&mut state);
        }
    }

    /// The requests of a group, as they are taken. While `is_early`, lanes give more of theirs, though others have a part in
    /// the group.
    pub fn requests(&self, mut made: Made, is_early: impl Fn() -> bool) -> impl Iterator<Item = Request> {
        let mut slice = Vec::new().into_iter();
        std::iter::from_fn(move || {
            if slice.len() == 0 && (!made.requests.is_empty() || self.more(&mut made, is_early())) {
                slice = std::mem::take(&mut made.requests).into_iter();
            }
            slice.next()
        })
    }

    /// Goes on with a group whose requests were taken out; false if it is to be ended.
    fn more(&self, made: &mut Made, is_early: bool) -> bool {
        let mut state = self.state.lock();
        let any = state.more(made, is_early);
        self.tell(&state);
        any
    }

    /// What is next, if anything waits.
    pub fn try_next(&self) -> Option<Next> {
        self.take(&mut self.state.lock())
    }

    fn take(&self, state: &mut State) -> Option<Next> {
        if let Some(expiry) = state.expiries.pop_front() {
            return Some(Next::Expire(expiry));
        }
        let group = state.group();
        if !group.requests.is_empty() {
            self.tell(state);
            return Some(Next::Group(group));
        }
        state.stopping.then_some(Next::End)
    }

    /// Opens the gate somewhat below the bounds at which it is shut, so that it does not flutter.
    fn tell(&self, state: &State) {
        let Bounds { commits, bytes } = self.bounds;
        if state.commits >= commits || state.bytes >= bytes {
            self.gate.set_open(false);
        } else if state.commits <= commits / 8 * 7 && state.bytes <= bytes / 8 * 7 {
            self.gate.set_open(true);
        }
    }
}

impl State {
    fn push(&mut self, request: Request) {
        self.drawn += 1;
        let size = request.ops.iter().map(|op| 64 + value_len(op) as u64).sum();
        let waiter = Waiter { place: self.drawn, request, size };
        self.commits += 1;
        self.bytes += size;
        for body in bodies(&waiter.request.ops) {
            let bytes = body.bytes.len() as u64;
            let shared = self.bodies.entry(body.id).or_insert(Shared { commits: 0, bytes: 0, written: false });
            shared.commits += 1;
            self.bytes += bytes.saturating_sub(shared.bytes);
            shared.bytes = shared.bytes.max(bytes);
        }
        match self.lane(&waiter.request) {
            None => self.line.push_back(waiter),
            Some(lane) => self.push_lane(lane, waiter),
        }
    }

    /// In which lane a commit is to wait: that of its owner, else that of its body.
    fn lane(&self, request: &Request) -> Option<u64> {
        let of_owner = self.owners.get(&request.owner).map(|(lane, _)| *lane);
        of_owner.or_else(|| bodies(&request.ops).next().map(|body| body.id))
    }

    fn push_lane(&mut self, lane: u64, waiter: Waiter) {
        self.owners.entry(waiter.request.owner.clone()).or_insert((lane, 0)).1 += 1;
        let waiters = self.lanes.entry(lane).or_default();
        if waiters.is_empty() {
            self.turns.push_back(lane);
        }
        waiters.push_back(waiter);
    }

    fn group(&mut self) -> Made {
        let mut made = Made::default();
        made.requests.reserve(self.line.len().min(GROUP.commits));
        self.take_line(&mut made);
        let more = made.requests.len() / FOR_ONE;
        let share = match made.has_line {
            true => LANES.plus(Size { commits: more, ops: 4 * more, bytes: 0 }),
            false => SLICE,
        };
        self.take_lanes(&mut made, share);
        made
    }

    fn more(&mut self, made: &mut Made, is_early: bool) -> bool {
        if made.has_line && !is_early || !self.expiries.is_empty() {
            return false;
        }
        self.take_line(made);
        let bound = if is_early { GROUP } else { ALONE };
        if (is_early || !made.has_line) && made.size.is_below(bound) {
            self.take_lanes(made, SLICE);
        }
        !made.requests.is_empty()
    }

    fn take_line(&mut self, made: &mut Made) {
        while made.size.is_below(GROUP) {
            let Some(waiter) = self.line.pop_front() else { return };
            self.add(waiter, made);
            made.has_line = true;
        }
    }

    fn take_lanes(&mut self, made: &mut Made, share: Size) {
        let bound = made.size.plus(share);
        while made.size.is_below(bound) && self.turn(made, bound) {}
    }

    /// Gives the next lane its turn; false when nothing more may be taken.
    fn turn(&mut self, made: &mut Made, bound: Size) -> bool {
        let Some(lane) = self.turns.pop_front() else { return false };
        let first = self.line.front().map_or(u64::MAX, |waiter| waiter.place);
        for _ in 0..TURN {
            let Some(waiters) = self.lanes.get_mut(&lane) else { return true };
            let next = waiters.pop_front_if(|next| next.place < first && made.size.is_below(bound));
            let Some(waiter) = next else {
                // Those before it in the line have gone first when the next group is made.
                self.turns.push_front(lane);
                return false;
            };
            if waiters.is_empty() {
                self.lanes.remove(&lane);
            }
            self.leave_lane(&waiter.request.owner);
            self.add(waiter, made);
        }
        if self.lanes.contains_key(&lane) {
            self.turns.push_back(lane);
        }
        true
    }

    fn leave_lane(&mut self, owner: &Owner) {
        if let Entry::Occupied(mut entry) = self.owners.entry(owner.clone()) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }

    fn add(&mut self, waiter: Waiter, made: &mut Made) {
        self.commits -= 1;
        self.bytes -= waiter.size;
        let ops = waiter.request.ops.len();
        made.size = made.size.plus(Size { commits: 1, ops, bytes: waiter.size });
        for body in bodies(&waiter.request.ops) {
            let Entry::Occupied(mut entry) = self.bodies.entry(body.id) else { continue };
            let shared = entry.get_mut();
            shared.commits -= 1;
            if !std::mem::replace(&mut shared.written, true) {
                made.size.bytes += shared.bytes;
            }
            if shared.commits == 0 {
                self.bytes -= entry.remove().bytes;
            }
        }
        made.requests.push(waiter.request);
    }
}

impl Size {
    fn is_below(self, bound: Size) -> bool {
        self.commits < bound.commits && self.ops < bound.ops && self.bytes < bound.bytes
    }

    fn plus(self, more: Size) -> Size {
        Size { commits: self.commits + more.commits, ops: self.ops + more.ops, bytes: self.bytes + more.bytes }
    }
}

/// The bodies that a commit's rows share.
fn bodies(ops: &[Op]) -> impl Iterator<Item = &tavi_store::Body> {
    ops.iter().filter_map(|op| match op {
        Op::QueueShare { body, .. } => Some(body),
        _ => None,
    })
}

fn value_len(op: &Op) -> usize {
    match op {
        Op::Put { value, .. }
        | Op::PutNewer { value, .. }
        | Op::Restore { value, .. }
        | Op::QueuePush { value, .. }
        | Op::QueueShare { head: value, .. }
        | Op::Archive { value, .. }
        | Op::Retract { tombstone: value, .. } => value.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tavi_store::{Body, Commit};

    fn waiting(commits: usize, bytes: u64) -> Waiting {
        Waiting::new(Bounds { commits, bytes })
    }

    fn push(waiting: &Waiting, owner: &str, id: u64, body: Option<(u64, usize)>) {
        let op = match body {
            None => Op::QueuePush { id, value: Bytes::new() },
            Some((body, len)) => {
                let body = Body { id: body, bytes: Bytes::from(vec![0; len]) };
                Op::QueueShare { id, head: Bytes::new(), body }
            }
        };
        let (slot, _) = Commit::pending();
        let request = Request { owner: Owner::topic(owner), ops: vec![op], slot, since: Instant::now() };
        assert!(waiting.push(request).is_ok());
    }

    fn begun(waiting: &Waiting) -> Made {
        match waiting.try_next() {
            Some(Next::Group(made)) => made,
            _ => Made::default(),
        }
    }

    fn rows(made: &mut Made) -> Vec<(String, u64)> {
        let row = |request: Request| match &request.ops[0] {
            Op::QueuePush { id, .. } | Op::QueueShare { id, .. } => (request.owner.name().to_owned(), *id),
            _ => panic!("only rows of queues were pushed"),
        };
        made.requests.drain(..).map(row).collect()
    }

    /// A whole group, while nobody comes.
    fn group(waiting: &Waiting) -> Vec<(String, u64)> {
        let mut made = begun(waiting);
        let mut all = rows(&mut made);
        while waiting.more(&mut made, false) {
            all.extend(rows(&mut made));
        }
        all
    }

    #[test]
    fn a_small_commit_goes_with_the_next_group_whatever_waits_before_it() {
        let waiting = waiting(100_000, 1 << 30);
        (0..10_000).for_each(|reader| push(&waiting, &reader.to_string(), 1, Some((1, 100))));
        push(&waiting, "chat", 2, None);
        let first = group(&waiting);
        assert_eq!((first[0].clone(), first.len()), (("chat".to_owned(), 2), 1 + LANES.commits));
        // With nobody else to wait for, the fan-out has the whole group.
        assert_eq!(group(&waiting).len(), ALONE.commits);
    }

    #[test]
    fn who_comes_while_a_fan_out_s_group_is_made_goes_with_it_and_ends_it() {
        let waiting = waiting(100_000, 1 << 30);
        (0..10_000).for_each(|reader| push(&waiting, &reader.to_string(), 1, Some((1, 100))));
        let mut made = begun(&waiting);
        assert_eq!(rows(&mut made).len(), SLICE.commits);
        assert!(waiting.more(&mut made, false));
        assert_eq!(rows(&mut made).len(), SLICE.commits);
        push(&waiting, "chat", 2, None);
        assert!(waiting.more(&mut made, false));
        assert_eq!(rows(&mut made), [("chat".to_owned(), 2)]);
        push(&waiting, "chat", 3, None);
        assert!(!waiting.more(&mut made, false), "it waits no longer than it must");
        let mut made = begun(&waiting);
        assert_eq!(rows(&mut made)[0], ("chat".to_owned(), 3));
        assert!(!waiting.more(&mut made, false));
    }

    #[test]
    fn a_group_that_is_made_sooner_than_a_flush_takes_goes_on() {
        let waiting = waiting(100_000, 1 << 30);
        (0..10_000).for_each(|reader| push(&waiting, &reader.to_string(), 1, Some((1, 100))));
        push(&waiting, "chat", 2, None);
        let mut made = begun(&waiting);
        assert_eq!(rows(&mut made)[0], ("chat".to_owned(), 2));
        push(&waiting, "chat", 3, None);
        assert!(waiting.more(&mut made, true));
        assert_eq!(
            (rows(&mut made)[0].clone(), made.size.commits),
            (("chat".to_owned(), 3), 2 + LANES.commits + SLICE.commits)
        );
        while waiting.more(&mut made, true) {
            rows(&mut made);
        }
        assert!(made.size.commits < GROUP.commits + SLICE.commits, "and is bounded");
    }

    #[test]
    fn many_of_the_line_leave_lanes_their_part() {
        let waiting = waiting(100_000, 1 << 30);
        (0..10_000).for_each(|reader| push(&waiting, &reader.to_string(), 1, Some((1, 100))));
        (0..2 * GROUP.commits as u64).for_each(|id| push(&waiting, "chat", 2 + id, None));
        let lanes = group(&waiting).iter().filter(|(_, id)| *id == 1).count();
        assert_eq!(lanes, LANES.commits + GROUP.commits / FOR_ONE);
    }

    #[test]
    fn fan_outs_take_turns() {
        let waiting = waiting(100_000, 1 << 30);
        (0..10_000).for_each(|reader| push(&waiting, &reader.to_string(), 1, Some((1, 100))));
        (0..10).for_each(|reader| push(&waiting, &format!("other {reader}"), 2, Some((2, 100))));
        let others = group(&waiting).iter().filter(|(_, id)| *id == 2).count();
        assert_eq!(others, 10);
    }

    #[test]
    fn no_fan_out_overtakes_what_was_handed_in_before_it() {
        let waiting = waiting(100_000, 1 << 30);
        (0..GROUP.commits as u64 + 10).for_each(|id| push(&waiting, &format!("chat {id}"), id, None));
        push(&waiting, "reader", 7, Some((1, 100)));
        assert!(group(&waiting).iter().all(|(owner, _)| owner.starts_with("chat")));
        let second = group(&waiting);
        assert_eq!((second.len(), second.last()), (11, Some(&("reader".to_owned(), 7))));
    }

    #[test]
    fn commits_of_one_owner_keep_their_order() {
        let waiting = waiting(100_000, 1 << 30);
        let mut random = 1u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % bound
        };
        let mut taken: HashMap<String, u64> = HashMap::new();
        let (mut pushed, mut seen) = (0, 0);
        while seen < 30_000 {
            for _ in 0..below(3_000).min(30_000 - pushed) {
                pushed += 1;
                let body = (below(3) > 0).then(|| (1 + below(20), 2_000));
                push(&waiting, &below(40).to_string(), pushed, body);
            }
            for (owner, id) in group(&waiting) {
                seen += 1;
                let before = taken.insert(owner, id).unwrap_or(0);
                assert!(before < id, "{id} behind {before}");
            }
        }
        let state = waiting.state.lock();
        assert_eq!((state.commits, state.bytes, state.owners.len(), state.lanes.len()), (0, 0, 0, 0));
        assert!(state.bodies.is_empty() && state.turns.is_empty());
    }

    #[test]
    fn a_shared_body_counts_once_and_the_gate_follows_what_waits() {
        let bounded = waiting(100_000, 3 << 20);
        (0..5_000).for_each(|reader| push(&bounded, &reader.to_string(), 1, Some((1, 1 << 20))));
        assert!(bounded.gate.is_open());
        // Behind the first group the body is written, and its rows are small.
        let groups: Vec<usize> = std::iter::from_fn(|| Some(group(&bounded).len()).filter(|len| *len > 0)).collect();
        assert!(groups.len() <= 5_000 / ALONE.commits + 2, "{groups:?}");
        (0..3).for_each(|id| push(&bounded, "a", id, Some((10 + id, 1 << 20))));
        assert!(!bounded.gate.is_open());
        assert_eq!(group(&bounded).len(), 3);
        assert!(bounded.gate.is_open());
        let few = waiting(8, 1 << 20);
        (0..8).for_each(|id| push(&few, "a", id, None));
        assert!(!few.gate.is_open());
        group(&few);
        assert!(few.gate.is_open());
    }
}
