//! What a client subscribes to, and the retained values that it is owed for it.

use std::sync::Arc;

use tavi_core::topics::SubOptions;
use tavi_core::{Publication, Ticket};
use tavi_store::Op;
use tavi_wire::topic::check_filter;

use super::{Client, Pending};
use crate::error::Fault;
use crate::hub::Seat;
use crate::packet::{Options, Qos, Reason, RetainHandling, Subscribe, Unsubscribe, Version, Wish};
use crate::reply;
use crate::seat::{Parcel, is_empty_value};

#[derive(Default)]
pub(super) struct Subscribed {
    packet_id: u16,
    grants: Vec<Result<Qos, Reason>>,
    retained: Vec<(Arc<Publication>, Qos)>,
    /// The rows of what was being published just then.
    coming: Ticket,
}

impl Client {
    pub(super) fn subscribe(&mut self, subscribe: Subscribe, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.check_answer(subscribe.filters.len())?;
        if subscribe.has_identifier {
            return Err(Fault::SubscriptionIdentifier);
        }
        let mut done = Subscribed { packet_id: subscribe.packet_id, ..Subscribed::default() };
        let mut ops = Vec::new();
        for wish in &subscribe.filters {
            let grant = self.subscribe_one(wish, &mut done, &mut ops)?;
            done.grants.push(grant);
        }
        let mut ticket = self.commit(ops);
        ticket.join(std::mem::take(&mut done.coming));
        self.after(ticket, Pending::Subscribed(Box::new(done)), size, out)
    }

    fn subscribe_one(
        &mut self,
        wish: &Wish,
        done: &mut Subscribed,
        ops: &mut Vec<Op>,
    ) -> Result<Result<Qos, Reason>, Fault> {
        // MQTT 5.0 §4.8.2: CONNACK said that there are no shared subscriptions.
        if self.version() == Version::V5 && wish.filter.starts_with("$share/") {
            return Err(Fault::SharedSubscription);
        }
        if let Err(error) = check_filter(&wish.filter) {
            tracing::warn!(who = %self.place.seat.principal(), filter = wish.filter, %error, "MQTT subscription refused");
            return Ok(Err(Reason::FILTER_INVALID));
        }
        if !self.place.has_filter(&wish.filter) && self.is_over_quota(done) {
            tracing::warn!(who = %self.place.seat.principal(), "MQTT subscription refused: the session has too many");
            return Ok(Err(Reason::QUOTA));
        }
        let options = core_options(wish.options);
        let subscriber = self.place.seat.subscriber();
        match self.hub.node().parts.topics.subscribe(&subscriber, &wish.filter, options) {
            Err(_) => Ok(Err(Reason::NOT_AUTHORIZED)),
            Ok(found) => {
                self.place.add_filter(&wish.filter, options, ops);
                done.coming.join(found.ticket);
                if wants_retained(wish.options.retain_handling, found.existed) {
                    self.keep_retained(found.retained, wish.options.qos, done, ops);
                }
                Ok(Ok(wish.options.qos))
            }
        }
    }

    /// MQTT 5.0 §3.1.2.11.4: an answer that the client does not take must not be sent, so nothing is begun either.
    fn check_answer(&self, filters: usize) -> Result<(), Fault> {
        let fits = self.session.takes(reply::suback_len(self.version(), filters));
        if fits { Ok(()) } else { Err(Fault::AnswerTooLarge) }
    }

    /// What subscriptions and the retained values that they find may take is bounded for a client that reads nothing.
    fn is_over_quota(&self, done: &Subscribed) -> bool {
        let (config, waiting) = (self.hub.config(), self.waiting.len() - self.next + done.retained.len());
        let filters = self.place.filter_count().max(done.grants.len());
        filters >= config.max_subscriptions || waiting > config.queue_messages
    }

    /// Retained values at QoS 1 and 2 are promised as any other delivery, so a durable session gets rows for them.
    fn keep_retained(&self, found: Vec<Arc<Publication>>, wanted: Qos, done: &mut Subscribed, ops: &mut Vec<Op>) {
        for publication in found.into_iter().filter(|found| !is_empty_value(found)) {
            let qos = wanted.min(publication.qos);
            match &self.place.seat {
                Seat::Kept(seat) if qos != Qos::AtMostOnce => ops.extend(seat.keep_retained(&publication, qos)),
                _ => {}
            }
            done.retained.push((publication, qos));
        }
    }

    pub(super) fn subscribed(&mut self, done: Subscribed, out: &mut Vec<u8>) {
        reply::suback(out, self.version(), done.packet_id, &done.grants);
        for (publication, qos) in done.retained {
            match &self.place.seat {
                Seat::Kept(seat) => seat.deliver_retained(&publication, qos),
                // Not through the mailbox: what a filter finds may be more than it holds.
                Seat::Live(_) => {
                    self.waiting.push(Parcel { publication, qos, retain: true, packet_id: 0, dup: false });
                }
            }
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        unsubscribe: Unsubscribe,
        size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        self.check_answer(unsubscribe.filters.len())?;
        let mut ops = Vec::new();
        let mut existed = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            // Asked here first: a change of subscriptions costs all publishers something.
            let found =
                self.place.has_filter(filter) && self.hub.node().parts.topics.unsubscribe(self.place.seat.id(), filter);
            if found {
                self.place.remove_filter(filter, &mut ops);
            }
            existed.push(found);
        }
        let ticket = self.commit(ops);
        self.after(ticket, Pending::Unsubscribed(Box::new((unsubscribe.packet_id, existed))), size, out)
    }
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
