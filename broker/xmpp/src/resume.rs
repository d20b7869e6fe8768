//! Resumption (XEP-0198 §5): the sessions that another connection can go on with, by the names that they were given.

use std::collections::{HashMap, VecDeque};
use std::{net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tavi_xmpp_proto::BareJid;
use tavi_xmpp_proto::ingress::Ingress;
use tavi_xmpp_proto::sm::Resumable;
use tavi_xmpp_proto::stream::Greeting;
use tokio::sync::{mpsc, oneshot};

use crate::listener::Shared;
use crate::wire::Wire;

/// A connection that goes on with a session.
pub(crate) struct Resume {
    pub wire: Wire,
    /// Who comes with it.
    pub peer: IpAddr,
    pub ingress: Ingress,
    /// Received behind the request.
    pub rest: Vec<u8>,
    /// The default language of the new stream.
    pub lang: Option<Box<str>>,
    /// How many stanzas the client has handled.
    pub handled: u32,
    /// How the client is told.
    pub greeting: Greeting,
    /// Where the connection goes if nobody goes on with the session, with how many stanzas were handled of it.
    pub back: oneshot::Sender<(Unresumed, Option<u32>)>,
}

/// A connection whose client goes on with no session: it may bind a resource.
pub(crate) struct Unresumed {
    pub wire: Wire,
    pub ingress: Ingress,
    pub rest: Vec<u8>,
}

impl Resume {
    /// Nobody goes on with the session: so many stanzas were handled, if that is known.
    pub fn give_back(self, handled: Option<u32>) {
        let Resume { wire, ingress, rest, back, .. } = self;
        // Who logs in for too long is gone.
        let _ = back.send((Unresumed { wire, ingress, rest }, handled));
    }
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

/// So many sessions that have ended are remembered.
const ENDED: usize = 10_000;

/// All sessions that can be resumed, and the last ones that could.
#[derive(Default)]
pub(crate) struct Resumables {
    sessions: Mutex<HashMap<Box<str>, (BareJid, Handover)>>,
    ended: Mutex<Ended>,
}

/// How many stanzas were handled of sessions that have ended (XEP-0198 §5, `h` of `<failed/>`).
#[derive(Default)]
struct Ended {
    counts: HashMap<Box<str>, (BareJid, u32)>,
    /// Their names, oldest first.
    names: VecDeque<Box<str>>,
}

impl Ended {
    fn note(&mut self, name: Box<str>, user: BareJid, handled: u32) {
        if self.names.len() >= ENDED
            && let Some(oldest) = self.names.pop_front()
        {
            self.counts.remove(&oldest);
        }
        self.names.push_back(name.clone());
        self.counts.insert(name, (user, handled));
    }
}

impl Resumables {
    /// The session of this name, if it is this user's: a name alone lets nobody in.
    pub fn find(&self, name: &str, user: &BareJid) -> Option<Handover> {
        let sessions = self.sessions.lock();
        sessions.get(name).filter(|(owner, _)| owner == user).map(|(_, handover)| handover.clone())
    }

    /// How many stanzas were handled of a session of this user that has ended, if that is remembered.
    pub fn ended(&self, name: &str, user: &BareJid) -> Option<u32> {
        let ended = self.ended.lock();
        ended.counts.get(name).filter(|(owner, _)| owner == user).map(|(_, handled)| *handled)
    }

    /// Names a session of a user. It is forgotten with what is returned.
    pub fn enter(self: &Arc<Self>, user: BareJid) -> Resumption {
        let mut secret = [0; 18];
        // Without randomness names could be guessed. getrandom fails only on broken systems.
        getrandom::fill(&mut secret).expect("the system has randomness since the broker started");
        self.enter_as(secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(), user)
    }

    /// A session of a user that had this name before the process was started anew.
    pub fn enter_as(self: &Arc<Self>, name: Box<str>, user: BareJid) -> Resumption {
        let (handover, connections) = mpsc::channel(1);
        self.sessions.lock().insert(name.clone(), (user.clone(), handover));
        Resumption { name, user, connections, all: self.clone() }
    }
}

/// What a session that can be resumed holds.
pub(crate) struct Resumption {
    pub name: Box<str>,
    user: BareJid,
    /// Connections that go on with it.
    pub connections: mpsc::Receiver<Box<Resume>>,
    all: Arc<Resumables>,
}

impl Resumption {
    /// The session is ending: nobody goes on with it any more. XEP-0198 §5: a connection that comes meanwhile is told how many
    /// stanzas were handled, once that is said and nothing of its client is under way, or after so much time that it is not
    /// known. Dropping what is returned says that it never will be.
    pub fn conclude(mut self, patience: Duration) -> oneshot::Sender<u32> {
        let (say, mut said) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(handled) = tokio::time::timeout(patience, &mut said).await {
                return self.leave(handled.ok()).await;
            }
            self.leave(None).await;
            // For who comes later.
            self.remember(said.await.ok());
        });
        say
    }

    async fn leave(&mut self, handled: Option<u32>) {
        self.remember(handled);
        self.forget();
        self.connections.close();
        while let Some(late) = self.connections.recv().await {
            late.give_back(handled);
        }
    }

    fn remember(&self, handled: Option<u32>) {
        if let Some(handled) = handled {
            self.all.ended.lock().note(self.name.clone(), self.user.clone(), handled);
        }
    }

    fn forget(&self) {
        let mut sessions = self.all.sessions.lock();
        sessions.remove(&self.name);
        if sessions.is_empty() {
            sessions.shrink_to_fit();
        }
    }
}

impl Drop for Resumption {
    fn drop(&mut self) {
        self.forget();
    }
}
