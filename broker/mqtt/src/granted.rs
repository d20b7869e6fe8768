//! Retained values that a subscription found and that are not sent yet: a stream, and how far it is.

use std::sync::Arc;
use std::task::{Context, Poll};

use tavi_core::Publication;
use tavi_core::topics::RetainedStream;
use tavi_store::{Op, StoreError};

use crate::kept::KeptSeat;
use crate::packet::Qos;
use crate::record::{self, GrantRecord};
use crate::seat::{Parcel, is_empty_value};

/// Retained values that get their rows in one commit.
const AT_ONCE: usize = 128;
/// Bytes of them.
const BYTES_AT_ONCE: usize = 256 << 10;

/// Some retained values of a durable session.
#[derive(Default)]
pub struct Batch {
    /// Those with rows: place, value, QoS.
    pub rows: Vec<(u64, Arc<Publication>, Qos)>,
    /// Those of QoS 0.
    pub live: Vec<Parcel>,
    /// The rows.
    pub ops: Vec<Op>,
    /// The topic of the last.
    pub reached: Option<Arc<str>>,
    /// There are no more.
    pub ended: bool,
    /// They could not be read on.
    pub failed: Option<StoreError>,
}

/// What is left to be read for one subscription.
pub struct Granted {
    /// The values.
    pub stream: RetainedStream,
    /// The most that the subscriber wants.
    pub wanted: Qos,
    /// The record that tells of it after a restart; only QoS 1 and 2 of durable sessions are promised so.
    pub item: Option<Box<str>>,
}

impl Granted {
    /// What a subscription found; nothing of it is promised yet.
    pub fn new(stream: RetainedStream, wanted: Qos) -> Self {
        Self { stream, wanted, item: None }
    }

    /// The rest is promised to a durable session: what is saved for that.
    pub fn promise(&mut self, id: u64, reached: Option<&Arc<str>>) -> Op {
        let item = record::granted_item(id);
        let after = reached.map(|topic| (**topic).into());
        let record = GrantRecord { filter: self.stream.filter().into(), wanted: self.wanted, after };
        let op = record::put(&item, record.encode());
        self.item = Some(item.into());
        op
    }

    /// Takes some of the values; those of QoS 1 and 2 get rows at `seat`, with ids of `fresh` where they need one. The
    /// rows that the batch has are coming, even if it failed: they have to be landed.
    pub fn pull(&mut self, seat: &KeptSeat, fresh: impl Fn() -> u64, cx: &mut Context<'_>) -> Batch {
        let (mut batch, mut bytes) = (Batch::default(), 0);
        while batch.rows.len() + batch.live.len() < AT_ONCE && bytes < BYTES_AT_ONCE {
            let Poll::Ready(found) = self.stream.poll_next(cx) else { break };
            let publication = match found {
                Ok(Some(publication)) => publication,
                Ok(None) => {
                    batch.ended = true;
                    break;
                }
                Err(error) => {
                    batch.failed = Some(error);
                    break;
                }
            };
            bytes += publication.weight();
            batch.reached = Some(publication.topic.clone());
            let qos = self.wanted.min(publication.qos);
            if is_empty_value(&publication) {
                continue;
            } else if qos == Qos::AtMostOnce {
                batch.live.push(Parcel { publication, qos, retain: true });
            } else {
                let (place, op) = seat.keep_retained(&publication, qos, &fresh);
                batch.ops.push(op);
                batch.rows.push((place, publication, qos));
            }
        }
        batch
    }

    /// The filter that it is for.
    pub fn filter(&self) -> &str {
        self.stream.filter()
    }

    /// It is read up to this topic.
    pub fn reached(&self, topic: &Arc<str>) -> Option<Op> {
        let record =
            GrantRecord { filter: self.stream.filter().into(), wanted: self.wanted, after: Some((**topic).into()) };
        self.item.as_ref().map(|item| record::put(item, record.encode()))
    }

    /// It is read, or not wanted any more.
    pub fn finished(&self) -> Option<Op> {
        self.item.as_ref().map(|item| record::delete(item))
    }
}
