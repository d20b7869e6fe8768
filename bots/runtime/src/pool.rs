//! The threads on which scripts run: few, named, fair between bots, one run at a time per conversation.

use parking_lot::{Condvar, Mutex};
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    thread::JoinHandle,
};
use tokio::sync::Notify;

/// The stack of a thread; bears the deepest script that the engine allows.
const STACK: usize = 2 << 20;

/// One piece of work. The [`Turn`] that it gets holds its conversation until it is dropped, which may be later and
/// elsewhere: when the run is durable and its messages are out.
pub type Job = Box<dyn FnOnce(Turn) + Send>;

/// A fixed number of threads with one bounded queue.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A conversation's turn: nothing else of it runs while this lives.
pub struct Turn {
    shared: Arc<Shared>,
    bot: Arc<str>,
    conversation: Arc<str>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Notify,
    closed: Notify,
    capacity: usize,
}

/// What became of a job.
enum Push {
    Taken,
    /// There is no room; here it is again.
    Full(Option<Job>),
    Closed,
}

#[derive(Default)]
struct Queue {
    bots: HashMap<Arc<str>, Lanes>,
    /// Bots that have something to run, in turn.
    ring: VecDeque<Arc<str>>,
    waiting: usize,
    stopped: bool,
}

/// What waits for one bot.
#[derive(Default)]
struct Lanes {
    conversations: HashMap<Arc<str>, Lane>,
    /// Conversations that wait and do not run, in turn.
    ready: VecDeque<Arc<str>>,
}

#[derive(Default)]
struct Lane {
    jobs: VecDeque<Job>,
    running: bool,
}

impl Pool {
    /// Starts `threads` threads; at most `capacity` jobs wait. Fails if the system gives no thread.
    pub fn start(threads: usize, capacity: usize) -> io::Result<Pool> {
        let (queue, work, room, closed) = (Mutex::default(), Condvar::new(), Notify::new(), Notify::new());
        let shared = Arc::new(Shared { queue, work, room, closed, capacity });
        let pool = Pool { shared: shared.clone(), threads: Mutex::default() };
        for n in 0..threads.max(1) {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("bots-{n}")).stack_size(STACK);
            pool.threads.lock().push(thread.spawn(move || shared.serve())?);
        }
        Ok(pool)
    }

    /// Puts a job behind the others of its conversation; waits while the queue is full. Once the pool is closed the
    /// job is dropped; tells whether it was taken.
    pub async fn submit(&self, bot: &Arc<str>, conversation: &Arc<str>, job: Job) -> bool {
        let mut job = Some(job);
        loop {
            let room = self.shared.room.notified();
            match self.shared.push(bot, conversation, job) {
                Push::Taken => return true,
                Push::Closed => return false,
                Push::Full(again) => job = again,
            }
            room.await;
        }
    }

    /// Ready once the pool takes no more jobs.
    pub async fn closed(&self) {
        let closed = self.shared.closed.notified();
        if !self.shared.queue.lock().stopped {
            closed.await;
        }
    }

    /// Takes no more jobs and drops those that wait.
    pub fn close(&self) {
        self.shared.stop();
    }

    /// Closes the pool and ends the threads once their runs have ended. Blocks for at most one run's time limit.
    pub fn stop(&self) {
        self.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread for bots has panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.queue.lock().release(&self.bot, &self.conversation);
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn push(&self, bot: &Arc<str>, conversation: &Arc<str>, job: Option<Job>) -> Push {
        let mut queue = self.queue.lock();
        if queue.stopped {
            return Push::Closed;
        }
        if queue.waiting >= self.capacity {
            return Push::Full(job);
        }
        let Some(job) = job else { return Push::Taken };
        queue.push(bot, conversation, job);
        drop(queue);
        self.work.notify_one();
        Push::Taken
    }

    fn serve(self: Arc<Self>) {
        while let Some((job, bot, conversation)) = self.next() {
            self.room.notify_one();
            let turn = Turn { shared: self.clone(), bot, conversation };
            // A panic ends one run, not the thread: the turn is given back while unwinding.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || job(turn))).is_err() {
                tracing::error!("a run of a bot has panicked");
            }
        }
    }

    fn next(&self) -> Option<(Job, Arc<str>, Arc<str>)> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(next) = queue.pop() {
                return Some(next);
            }
            self.work.wait(&mut queue);
        }
    }

    fn stop(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.stopped = true;
            queue.ring.clear();
            std::mem::take(&mut queue.bots)
        };
        // Jobs may hold turns of their own; they are dropped outside the lock.
        drop(dropped);
        self.work.notify_all();
        self.room.notify_waiters();
        self.closed.notify_waiters();
    }
}

impl Queue {
    fn push(&mut self, bot: &Arc<str>, conversation: &Arc<str>, job: Job) {
        self.waiting += 1;
        let lanes = self.bots.entry(bot.clone()).or_default();
        let lane = lanes.conversations.entry(conversation.clone()).or_default();
        lane.jobs.push_back(job);
        if lane.jobs.len() == 1 && !lane.running {
            self.make_ready(bot, conversation);
        }
    }

    fn make_ready(&mut self, bot: &Arc<str>, conversation: &Arc<str>) {
        let Some(lanes) = self.bots.get_mut(bot) else { return };
        if lanes.ready.is_empty() {
            self.ring.push_back(bot.clone());
        }
        lanes.ready.push_back(conversation.clone());
    }

    /// The next bot's next conversation's next job.
    fn pop(&mut self) -> Option<(Job, Arc<str>, Arc<str>)> {
        let bot = self.ring.pop_front()?;
        let lanes = self.bots.get_mut(&bot)?;
        let conversation = lanes.ready.pop_front()?;
        if !lanes.ready.is_empty() {
            self.ring.push_back(bot.clone());
        }
        let lane = lanes.conversations.get_mut(&conversation)?;
        let job = lane.jobs.pop_front()?;
        lane.running = true;
        self.waiting -= 1;
        Some((job, bot, conversation))
    }

    fn release(&mut self, bot: &Arc<str>, conversation: &Arc<str>) {
        let Some(lanes) = self.bots.get_mut(bot) else { return };
        let Some(lane) = lanes.conversations.get_mut(conversation) else { return };
        lane.running = false;
        if !lane.jobs.is_empty() {
            return self.make_ready(bot, conversation);
        }
        lanes.conversations.remove(conversation);
        if lanes.conversations.is_empty() {
            self.bots.remove(bot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    /// A job that reports its name and hands its turn out.
    fn report(log: &mpsc::Sender<(&'static str, Turn)>, what: &'static str) -> Job {
        let log = log.clone();
        Box::new(move |turn| log.send((what, turn)).unwrap())
    }

    #[tokio::test]
    async fn one_conversation_runs_one_job_at_a_time_and_others_go_on() {
        let pool = Pool::start(2, 100).unwrap();
        let (log, seen) = mpsc::channel();
        let (bot, anna, ben) = (name("bot"), name("anna"), name("ben"));
        pool.submit(&bot, &anna, report(&log, "anna 1")).await;
        let (first, turn) = seen.recv().unwrap();
        assert_eq!(first, "anna 1");
        pool.submit(&bot, &anna, report(&log, "anna 2")).await;
        pool.submit(&bot, &ben, report(&log, "ben 1")).await;
        assert_eq!(seen.recv().unwrap().0, "ben 1", "anna still has her first turn");
        drop(turn);
        assert_eq!(seen.recv().unwrap().0, "anna 2");
    }

    #[test]
    fn bots_take_turns() {
        let mut queue = Queue::default();
        for conversation in ["a", "b", "c"] {
            queue.push(&name("busy"), &name(conversation), Box::new(|_| {}));
        }
        queue.push(&name("quiet"), &name("a"), Box::new(|_| {}));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, bot, c)| format!("{bot}/{c}")).collect();
        assert_eq!(order, ["busy/a", "quiet/a", "busy/b", "busy/c"]);
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_sender_wait_and_a_panic_ends_one_run_only() {
        let pool = Arc::new(Pool::start(1, 1).unwrap());
        let (log, seen) = mpsc::channel();
        let (gate, open) = mpsc::channel::<()>();
        let (bot, one, two, three) = (name("bot"), name("1"), name("2"), name("3"));
        let (started, running) = mpsc::channel();
        let hold: Job = Box::new(move |_| {
            started.send(()).unwrap();
            open.recv().unwrap();
            panic!("as tested");
        });
        pool.submit(&bot, &one, hold).await;
        running.recv().unwrap();
        pool.submit(&bot, &two, report(&log, "second")).await;
        let third = report(&log, "third");
        let mut waiting = Box::pin(pool.submit(&bot, &three, third));
        assert!(futures_poll(&mut waiting).await, "there is no room");
        gate.send(()).unwrap();
        waiting.await;
        assert_eq!(seen.recv().unwrap().0, "second");
        assert_eq!(seen.recv().unwrap().0, "third");
        pool.stop();
        assert!(!pool.submit(&bot, &one, report(&log, "late")).await, "it is closed");
    }

    /// Whether a future is still pending when polled once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
    }
}
