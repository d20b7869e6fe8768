//! Resumption (XEP-0198 §5): the sessions that another connection can go on with, by the names that they were given.

use std::collections::{HashMap, VecDeque};
use std::{future::poll_fn, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tavi_xmpp_proto::BareJid;
use tavi_xmpp_proto::ingress::Ingress;
use tavi_xmpp_proto::sm::{self, Resumable};
use tavi_xmpp_proto::stream::Greeting;
use tokio::sync::mpsc;

use crate::config::Config;
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
        let name: Box<str> = secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        let (handover, connections) = mpsc::channel(1);
        self.sessions.lock().insert(name.clone(), (user, handover));
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

impl Resumption {
    /// The session is ending: nobody goes on with it any more. XEP-0198 §5: a connection that came a moment too late is told.
    pub fn refuse_others(&mut self, config: &Config) {
        self.connections.close();
        while let Ok(late) = self.connections.try_recv() {
            tokio::spawn(refuse(*late, config.farewell_deadline));
        }
    }

    /// The session has ended and nothing of its client is under way: so many stanzas were handled.
    pub fn conclude(self, handled: u32) {
        let user = self.all.sessions.lock().get(&self.name).map(|(user, _)| user.clone());
        if let Some(user) = user {
            self.all.ended.lock().note(self.name.clone(), user, handled);
        }
    }
}

/// The login stands, so the client finds the failure and the end of the stream, and comes again.
async fn refuse(late: Resume, deadline: Duration) {
    let Resume { mut wire, ingress, greeting, .. } = late;
    let (mut out, mut done, mut said) = (Vec::new(), 0, false);
    greeting.write(sm::not_resumed(None), &mut out);
    ingress.framing().write_close(&mut out);
    let _ = tokio::time::timeout(deadline, async {
        let _ = poll_fn(|cx| wire.poll_write_all(cx, &out, &mut done)).await;
        poll_fn(|cx| wire.poll_hang_up(cx, &mut said)).await;
    })
    .await;
}

impl Drop for Resumption {
    fn drop(&mut self) {
        let mut sessions = self.all.sessions.lock();
        sessions.remove(&self.name);
        if sessions.is_empty() {
            sessions.shrink_to_fit();
        }
    }
}
