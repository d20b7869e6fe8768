//! What a client subscribes to, and the retained values that it is owed for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Waker};

use tavi_core::Publication;
use tavi_core::lines::{Lines, shown};
use tavi_core::topics::SubOptions;
use tavi_store::Op;
use tavi_wire::topic::check_filter;

use super::{Pending, Sitting};
use crate::error::Fault;
use crate::granted::Granted;
use crate::hub::Seat;
use crate::link::{Line, Said};
use crate::packet::{Options, Qos, Reason, RetainHandling, Subscribe, Unsubscribe, Version, Wish};
use crate::seat::Parcel;

static ILLEGAL: Lines = Lines::new();
static TOO_MANY: Lines = Lines::new();

#[derive(Default)]
pub(super) struct Subscribed {
    packet_id: u16,
    grants: Vec<Result<Qos, Reason>>,
    /// The first retained values: those with rows, and those of QoS 0.
    rows: Vec<(u64, Arc<Publication>, Qos)>,
    live: Vec<Parcel>,
    /// The rest of them.
    rest: Vec<Granted>,
    /// The filters that they are for.
    renewed: HashSet<Box<str>>,
}

impl Sitting {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        if subscribe.has_identifier {
            return Err(Fault::SubscriptionIdentifier);
        }
        // MQTT 5.0 §4.8.2: CONNACK said that there are no shared subscriptions. Asked before anything is begun.
        let is_shared = |wish: &Wish| wish.filter.starts_with("$share/");
        if self.version == Version::V5 && subscribe.filters.iter().any(is_shared) {
            return Err(Fault::SharedSubscription);
        }
        let mut done = Subscribed { packet_id: subscribe.packet_id, ..Subscribed::default() };
        let mut ops = Vec::new();
        let last = last_of_each(&subscribe.filters);
        for (at, wish) in subscribe.filters.iter().enumerate() {
            // What is found for a filter that this packet names again comes with the last of them.
            let again = last.get(&*wish.filter).is_some_and(|last| *last > at);
            match self.subscribe_one((wish, again), &mut done, &mut ops) {
                Ok(grant) => done.grants.push(grant),
                Err(fault) => {
                    self.not_subscribed(done);
                    return Err(fault);
                }
            }
        }
        // What an earlier SUBSCRIBE of these filters has not got yet comes with this one.
        let renewed = std::mem::take(&mut done.renewed);
        self.forget_granted(|filter| renewed.contains(filter), &mut ops);
        let ticket = self.commit(ops);
        self.after(ticket, Pending::Subscribed(Box::new(done)), size, line)
    }

    fn subscribe_one(
        &mut self,
        (wish, again): (&Wish, bool),
        done: &mut Subscribed,
        ops: &mut Vec<Op>,
    ) -> Result<Result<Qos, Reason>, Fault> {
        if let Err(error) = check_filter(&wish.filter) {
            let (who, filter) = (self.place.seat.principal(), shown(&wish.filter));
            ILLEGAL.write(|| tracing::warn!(%who, filter, %error, "MQTT subscription refused"));
            return Ok(Err(Reason::FILTER_INVALID));
        }
        if !self.place.has_filter(&wish.filter) && self.is_over_quota(done) {
            let who = self.place.seat.principal();
            TOO_MANY.write(|| tracing::warn!(%who, "MQTT subscription refused: the session has too many"));
            return Ok(Err(Reason::QUOTA));
        }
        let options = core_options(wish.options);
        let subscriber = self.place.seat.subscriber();
        match self.hub.node().parts.topics.join(&subscriber, &wish.filter, options) {
            Err(_) => Ok(Err(Reason::NOT_AUTHORIZED)),
            Ok(found) => {
                self.place.add_filter(&wish.filter, options, ops);
                if self.place.seat.kept().is_some_and(|seat| seat.has_ended()) {
                    // Whoever ended the session may not have seen this subscription.
                    self.hub.node().parts.topics.unsubscribe(self.place.seat.id(), &wish.filter);
                    return Err(Fault::TakenOver);
                }
                if wants_retained(wish.options.retain_handling, found.existed) && !again {
                    done.renewed.insert(wish.filter.as_str().into());
                    self.grant(Granted::new(found.retained, wish.options.qos), done, ops)?;
                }
                Ok(Ok(wish.options.qos))
            }
        }
    }

    /// What subscriptions and the retained values that they find may take is bounded for a client that reads nothing.
    fn is_over_quota(&self, done: &Subscribed) -> bool {
        self.place.filter_count().max(done.grants.len()) >= self.hub.config().max_subscriptions
    }

    /// Retained values at QoS 1 and 2 are promised to a durable session as any other delivery. The first ones get rows
    /// with the subscription; if there are more, a record tells how far they have rows.
    fn grant(&mut self, mut granted: Granted, done: &mut Subscribed, ops: &mut Vec<Op>) -> Result<(), Fault> {
        let Some(seat) = self.place.seat.kept().filter(|_| granted.wanted > Qos::AtMostOnce) else {
            done.rest.push(granted);
            return Ok(());
        };
        let mut reached = None;
        // While others are on their way, or wait, these are read when their turn comes.
        if seat.wants_granted() {
            // Whoever is not ready is asked again when the subscription is saved.
            let mut cx = Context::from_waker(Waker::noop());
            let batch = granted.pull(seat, || self.hub.next_id(), &mut cx);
            done.rows.extend(batch.rows);
            done.live.extend(batch.live);
            ops.extend(batch.ops);
            if batch.failed.is_some() {
                return Err(Fault::Store);
            }
            if batch.ended {
                return Ok(());
            }
            reached = batch.reached;
        }
        ops.push(granted.promise(self.hub.next_id(), reached.as_ref()));
        done.rest.push(granted);
        Ok(())
    }

    /// What is not read yet of earlier subscriptions to these filters is not wanted any more.
    fn forget_granted(&mut self, which: impl Fn(&str) -> bool, ops: &mut Vec<Op>) {
        ops.extend(self.granted.iter().filter(|granted| which(granted.filter())).filter_map(Granted::finished));
        self.granted.retain(|granted| !which(granted.filter()));
    }

    pub(super) fn subscribed(&mut self, done: Subscribed, line: &mut dyn Line) {
        line.say(Said::Subscribed(done.packet_id, done.grants));
        let Seat::Kept(seat) = &self.place.seat else { return self.granted.extend(done.rest) };
        seat.land_retained(done.rows, true);
        if self.left {
            return seat.leave_granted(done.rest.into());
        }
        done.live.into_iter().for_each(|parcel| seat.put_fleeting(parcel));
        self.granted.extend(done.rest);
    }

    /// What was to be saved for a subscription could not be.
    pub(super) fn not_subscribed(&mut self, done: Subscribed) {
        if let Seat::Kept(seat) = &self.place.seat {
            seat.land_retained(done.rows, false);
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        unsubscribe: Unsubscribe,
        size: usize,
        line: &mut dyn Line,
    ) -> Result<(), Fault> {
        let mut ops = Vec::new();
        let (mut existed, mut gone) = (Vec::with_capacity(unsubscribe.filters.len()), HashSet::new());
        for filter in &unsubscribe.filters {
            // Asked here first: a change of subscriptions costs all publishers something.
            let found =
                self.place.has_filter(filter) && self.hub.node().parts.topics.unsubscribe(self.place.seat.id(), filter);
            if found {
                self.place.remove_filter(filter, &mut ops);
                gone.insert(filter.as_str());
            }
            existed.push(found);
        }
        self.forget_granted(|filter| gone.contains(filter), &mut ops);
        let ticket = self.commit(ops);
        self.after(ticket, Pending::Unsubscribed(Box::new((unsubscribe.packet_id, existed))), size, line)
    }
}

/// Where each filter stands last that wants what is retained in any case.
fn last_of_each(wishes: &[Wish]) -> HashMap<&str, usize> {
    let always = |wish: &Wish| wish.options.retain_handling == RetainHandling::Always;
    let wishes = wishes.iter().enumerate().filter(|(_, wish)| always(wish));
    wishes.map(|(at, wish)| (&*wish.filter, at)).collect()
}

fn core_options(options: Options) -> SubOptions {
    SubOptions {
        qos: options.qos,
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        identifier: 0,
    }
}

fn wants_retained(handling: RetainHandling, existed: bool) -> bool {
    match handling {
        RetainHandling::Always => true,
        RetainHandling::IfNew => !existed,
        RetainHandling::Never => false,
    }
}
