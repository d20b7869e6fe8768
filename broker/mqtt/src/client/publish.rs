//! What a client publishes: permit, order, and the two steps of a durable session's QoS 2.

use std::sync::Arc;

use tavi_core::Ticket;
use tavi_core::metrics::Outcome;
use tavi_core::permit::Action;
use tavi_core::topics::Refusal;
use tavi_store::Op;

use super::{Client, Pending, Unpublished, Waiting};
use crate::error::Fault;
use crate::hub::Seat;
use crate::packet::{Publish, Qos, Reason, Version};
use crate::record::{self, Inbound};
use crate::render;
use crate::session::Answer;

impl Client {
    pub(super) fn publish(&mut self, publish: Publish, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.count(Outcome::Received);
        // MQTT 5.0 §3.3.2.1, §3.3.2.3.4: without a topic alias there has to be a topic; 3.1.1 §4.7.3: at least a character.
        if publish.body.topic().is_empty() {
            return Err(Fault::Protocol("an empty topic"));
        }
        if let (Qos::ExactlyOnce, Seat::Kept(seat)) = (publish.qos, &self.place.seat) {
            let id = seat.begin(publish.packet_id, publish.dup, || self.hub.next_id());
            return self.publish_kept(id, publish, size, out);
        }
        self.in_turn(Waiting::Publish(publish), size, out)
    }

    pub(super) fn publish_now(&mut self, publish: Publish, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let answer = |reason| Pending::Answer(Answer::published(publish.qos, publish.packet_id, reason));
        match self.publish_as(&publish, None) {
            Ok(ticket) => self.after(ticket, answer(Reason::SUCCESS), size, out),
            Err(refusal) => {
                let reason = self.refused(refusal, publish.qos)?;
                self.after(Ticket::done(), answer(reason), size, out)
            }
        }
    }

    /// semantics.md, order: a durable session's QoS 2 publish is first saved under its id, then published, so that a
    /// restart can repeat the fan-out under the same id.
    fn publish_kept(&mut self, id: u64, publish: Publish, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let unfinished = Some((publish.body.clone(), publish.retain));
        let value = Inbound { id, unfinished }.encode();
        let ops = vec![record::put(&record::inbound_item(publish.packet_id), value), Op::Drawn { id }];
        let ticket = self.commit(ops);
        self.unpublished += 1;
        self.after(ticket, Pending::FanOut(Box::new(Unpublished { id, publish, size })), size, out)
    }

    fn publish_as(&mut self, publish: &Publish, id: Option<u64>) -> Result<Ticket, Refusal> {
        let topic = self.shared_topic(publish.body.topic());
        let mut draft = render::draft(topic, &publish.body, publish.qos, publish.retain, self.now.wall_ms);
        draft.from_session = self.place.seat.id();
        draft.id = id;
        self.hub.node().parts.topics.publish_as(self.place.seat.principal(), Action::Publish, draft)
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
        let answerable = self.version() == Version::V5 && qos != Qos::AtMostOnce;
        if let Refusal::IllegalTopic(error) = &refusal {
            tracing::warn!(who = %self.place.seat.principal(), %error, "MQTT publish refused");
        }
        match refusal {
            Refusal::IllegalTopic(error) if !answerable => Err(Fault::Topic(error)),
            Refusal::IllegalTopic(_) => Ok(Reason::TOPIC_INVALID),
            Refusal::Unavailable(_) => Err(Fault::Store),
            Refusal::Forbidden => {
                self.count(if answerable { Outcome::Refused } else { Outcome::Dropped });
                Ok(if answerable { Reason::NOT_AUTHORIZED } else { Reason::SUCCESS })
            }
        }
    }

    pub(super) fn release(&mut self, answer: Answer, size: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        if self.place.seat.kept().is_none() || answer.is_failure() {
            self.session.answer(answer, out);
            return Ok(());
        }
        // Only when this is gone may the packet id mean another message, so PUBCOMP waits for it.
        let op = self.forget_inbound(answer.packet_id());
        let ticket = self.commit(vec![op]);
        self.after(ticket, Pending::Answer(answer), size, out)
    }

    /// That it is published is saved before anybody gets it, so that no restart publishes it to somebody who has it.
    pub(super) fn fan_out(&mut self, unpublished: Unpublished, out: &mut Vec<u8>) -> Result<(), Fault> {
        let Unpublished { id, publish, size } = unpublished;
        let answer = |reason| Pending::Answer(Answer::published(publish.qos, publish.packet_id, reason));
        let done = record::put(&record::inbound_item(publish.packet_id), Inbound { id, unfinished: None }.encode());
        match self.publish_as(&publish, Some(id)) {
            Ok(mut ticket) => {
                let save = self.saver();
                ticket.save_last(Box::new(move || save(vec![done])));
                self.after(ticket, answer(Reason::SUCCESS), size, out)
            }
            Err(refusal) => {
                let refused = self.refused(refusal, publish.qos);
                // 3.1.1 goes on to PUBREL as if nothing had happened.
                let goes_on = refused == Ok(Reason::SUCCESS);
                let op = if goes_on { done } else { self.forget_inbound(publish.packet_id) };
                let ticket = self.commit(vec![op]);
                self.after(ticket, answer(refused?), size, out)
            }
        }
    }

    fn forget_inbound(&self, packet_id: u16) -> Op {
        if let Seat::Kept(seat) = &self.place.seat {
            seat.let_go(packet_id);
            seat.finish(packet_id);
        }
        record::delete(&record::inbound_item(packet_id))
    }
}
