//! Resumption (XEP-0198 §5): the sessions that another connection can go on with, by the names that they were given.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tavi_xmpp_proto::BareJid;
use tavi_xmpp_proto::ingress::Ingress;
use tokio::sync::mpsc;

use crate::wire::Wire;

/// A connection that goes on with a session.
pub(crate) struct Resume {
    pub wire: Wire,
    pub ingress: Ingress,
    /// Received behind the request.
    pub rest: Vec<u8>,
    /// The default language of the new stream.
    pub lang: Option<Box<str>>,
    /// How many stanzas the client has handled.
    pub handled: u32,
}

type Handover = mpsc::Sender<Box<Resume>>;

/// All sessions that can be resumed.
#[derive(Default)]
pub(crate) struct Resumables(Mutex<HashMap<Box<str>, (BareJid, Handover)>>);

impl Resumables {
    /// The session of this name, if it is this user's: a name alone lets nobody in.
    pub fn find(&self, name: &str, user: &BareJid) -> Option<Handover> {
        let sessions = self.0.lock();
        sessions.get(name).filter(|(owner, _)| owner == user).map(|(_, handover)| handover.clone())
    }

    /// Names a session of a user. It is forgotten with what is returned.
    pub fn enter(self: &Arc<Self>, user: BareJid) -> Resumption {
        let mut secret = [0; 18];
        // Without randomness names could be guessed. getrandom fails only on broken systems.
        getrandom::fill(&mut secret).expect("the system has randomness since the broker started");
        let name: Box<str> = secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        let (handover, connections) = mpsc::channel(1);
        self.0.lock().insert(name.clone(), (user, handover));
        Resumption { name, connections, all: self.clone() }
    }
}

/// What a session that can be resumed holds.
pub(crate) struct Resumption {
    pub name: Box<str>,
    /// Connections that go on with it.
    pub connections: mpsc::Receiver<Box<Resume>>,
    all: Arc<Resumables>,
}

impl Drop for Resumption {
    fn drop(&mut self) {
        let mut sessions = self.all.0.lock();
        sessions.remove(&self.name);
        if sessions.is_empty() {
            sessions.shrink_to_fit();
        }
    }
}
