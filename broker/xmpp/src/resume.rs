//! Resumption (XEP-0198 §5): the sessions that another connection can go on with, by the names that they were given.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tavi_xmpp_proto::BareJid;
use tavi_xmpp_proto::ingress::Ingress;
use tavi_xmpp_proto::sm::Resumable;
use tavi_xmpp_proto::stream::Greeting;
use tokio::sync::mpsc;

use crate::listener::Shared;
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
    /// How the client is told.
    pub greeting: Greeting,
}

/// Stream management that a client has enabled.
pub(crate) struct Managed {
    pub resumption: Option<Box<Resumption>>,
}

impl Managed {
    /// For a session of a user; with `resume` it can be gone on with, if the server allows that.
    pub fn new(shared: &Shared, user: &BareJid, resume: bool) -> Managed {
        let resume = resume && !shared.config.resume.is_zero();
        Managed { resumption: resume.then(|| Box::new(shared.resumable.enter(user.clone()))) }
    }

    /// What the client is told.
    pub fn resumable(&self, shared: &Shared) -> Option<Resumable<'_>> {
        let max = shared.config.resume.as_secs();
        self.resumption.as_ref().map(|resumption| Resumable { id: &resumption.name, max })
    }
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
