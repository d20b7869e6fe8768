//! What a client publishes: permit, answers, and the steps of a durable session's QoS 2.

use std::sync::Arc;

use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_core::topics::{Draft, Refusal, Subscriber};
use tavi_core::{Lines, Ticket};
use tavi_store::Op;

use super::{Pending, Sitting};
use crate::error::Fault;
use crate::hub::Seat;
use crate::kept::KeptSeat;
use crate::link::{Line, Said};
use crate::packet::{Body, Publish, Qos, Reason, Version};
use crate::record::{self, Inbound};
use crate::render;
use crate::session::Answer;

static ILLEGAL: Lines = Lines::new();

impl Sitting {
    pub(super) fn publish(&mut self, publish: Publish, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        self.count(Outcome::Received);
        // MQTT 5.0 §3.3.2.1, §3.3.2.3.4: without a topic alias there has to be a topic; 3.1.1 §4.7.3: at least a character.
        if publish.body.topic().is_empty() {
            return Err(Fault::Protocol("an empty topic"));
        }
        let answer = |reason| Pending::Answer(Answer::published(publish.qos, publish.packet_id, reason));
        let begun = match (publish.qos, &self.place.seat) {
            (Qos::ExactlyOnce, Seat::Kept(seat)) => self.publish_kept(&seat.clone(), &publish),
            _ => self.publish_live(&publish),
        };
        match begun {
            Ok(ticket) => self.after(ticket, answer(Reason::SUCCESS), size, line),
            Err(refusal) => {
                let reason = self.refused(refusal, publish.qos)?;
                let ticket = self.note_refusal(&publish, reason);
                self.after(ticket, answer(reason), size, line)
            }
        }
    }

    fn publish_live(&mut self, publish: &Publish) -> Result<Ticket, Refusal> {
        let draft = self.draft(publish);
        self.hub.node().parts.topics.publish_as(self.place.seat.principal(), Action::Publish, draft)
    }

    /// semantics.md, order: a durable session's QoS 2 publish is first saved under its id, then published, so that a
    /// restart can repeat the fan-out under the same id. That it is published is saved before anybody gets it, so that
    /// no restart publishes it to somebody who has it.
    fn publish_kept(&mut self, seat: &Arc<KeptSeat>, publish: &Publish) -> Result<Ticket, Refusal> {
        let mut draft = self.draft(publish);
        draft.replaces = seat.failed(publish.packet_id).filter(|_| publish.dup);
        let (packet_id, body) = (publish.packet_id, (publish.body.clone(), publish.retain));
        let (note, done) = (self.saver(), self.saver());
        let mut drawn = 0;
        let first = |id| {
            drawn = id;
            seat.begin(packet_id, id);
            note(vec![inbound(packet_id, id, Some(body)), Op::Drawn { id }])
        };
        let who = (seat.principal(), Action::Publish);
        let mut ticket = self.hub.node().parts.topics.publish_noted(who, draft, first)?;
        ticket.save_next(Box::new(move || vec![done(vec![inbound(packet_id, drawn, None)])]));
        Ok(ticket)
    }

    fn draft(&mut self, publish: &Publish) -> Draft {
        let topic = self.shared_topic(publish.body.topic());
        let mut draft = render::draft(topic, &publish.body, publish.qos, publish.retain, self.now.wall_ms);
        draft.from_session = self.place.seat.id();
        draft
    }

    /// Clients mostly publish to the topic that they published to before: its name is shared.
    fn shared_topic(&mut self, name: &str) -> Arc<str> {
        match &self.topic {
            Some(topic) if **topic == *name => topic.clone(),
            _ => self.topic.insert(name.into()).clone(),
        }
    }

    /// semantics.md: an illegal topic is 0x90 or, in 3.1.1 and where there is no answer, the end; a refused publish is
    /// 0x87 or, in 3.1.1 and at QoS 0, dropped and counted.
    fn refused(&self, refusal: Refusal, qos: Qos) -> Result<Reason, Fault> {
        let answerable = self.version == Version::V5 && qos != Qos::AtMostOnce;
        if let Refusal::IllegalTopic(error) = &refusal {
            let who = self.place.seat.principal();
            ILLEGAL.write(|| tracing::warn!(%who, %error, "MQTT publish refused"));
        }
        match refusal {
            Refusal::IllegalTopic(error) if !answerable => Err(Fault::Topic(error)),
            Refusal::IllegalTopic(_) => Ok(Reason::TOPIC_INVALID),
            Refusal::Unavailable(_) => Err(Fault::Store),
            Refusal::Forbidden => Ok(self.told(answerable.then_some(Reason::NOT_AUTHORIZED))),
            Refusal::OverQuota(_) => Ok(self.told(answerable.then_some(Reason::QUOTA))),
        }
    }

    /// What a refused publisher is told: without a reason it is dropped, and counted.
    fn told(&self, reason: Option<Reason>) -> Reason {
        self.count(if reason.is_some() { Outcome::Refused } else { Outcome::Dropped });
        reason.unwrap_or(Reason::SUCCESS)
    }

    pub(super) fn release(&mut self, answer: Answer, size: usize, line: &mut dyn Line) -> Result<(), Fault> {
        if self.place.seat.kept().is_none() || answer.is_failure() {
            line.say(Said::Answer(answer));
            return Ok(());
        }
        // Only when this is gone may the packet id mean another message, so PUBCOMP waits for it.
        let op = self.forget_inbound(answer.packet_id());
        let ticket = self.commit(vec![op]);
        self.after(ticket, Pending::Answer(answer), size, line)
    }

    /// A refused QoS 2 publish of a durable session: 3.1.1 goes on to PUBREL as if nothing had happened.
    fn note_refusal(&self, publish: &Publish, reason: Reason) -> Ticket {
        let Seat::Kept(seat) = &self.place.seat else { return Ticket::done() };
        if publish.qos != Qos::ExactlyOnce {
            return Ticket::done();
        } else if reason.is_failure() {
            // §4.3.3: that ends the exchange, also of an attempt that failed before.
            let begun = seat.failed(publish.packet_id).is_some();
            return if begun { self.commit(vec![self.forget_inbound(publish.packet_id)]) } else { Ticket::done() };
        }
        let id = self.hub.next_id();
        seat.begin(publish.packet_id, id);
        self.commit(vec![inbound(publish.packet_id, id, None)])
    }

    fn forget_inbound(&self, packet_id: u16) -> Op {
        if let Seat::Kept(seat) = &self.place.seat {
            seat.let_go(packet_id);
            seat.finish(packet_id);
        }
        record::delete(&record::inbound_item(packet_id))
    }
}

/// The record of a QoS 2 publish that is not released.
fn inbound(packet_id: u16, id: u64, unfinished: Option<(Body, bool)>) -> Op {
    record::put(&record::inbound_item(packet_id), Inbound { id, unfinished }.encode())
}
