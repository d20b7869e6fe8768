//! Test support: a broker as a child process, small clients of its three protocols, and the scenario runner.
//!
//! # Scenarios
//! A scenario is a text file (`.scn`) that reads as a dialogue. Each line is one step; empty lines and lines that
//! begin with `#` are for the reader. The broker is started by the first step that needs it.
//!
//! ```text
//! Caller is an account
//! Pump is a device
//! Caller (xmpp) logs in
//! Caller (xmpp) subscribes to the topic "d/{Pump}/up/t", and is refused with forbidden
//! Caller may subscribe on "d/{Pump}/#"
//! Caller (xmpp) subscribes to the topic "d/{Pump}/up/t"
//! Pump (mqtt 3.1.1) connects
//! Pump (mqtt 3.1.1) publishes "21.5" to "d/{Pump}/up/t" at QoS 1, retained
//! Caller (xmpp) sees "21.5" on the topic "d/{Pump}/up/t"
//! the broker is killed and started again
//! ```
//!
//! - `NAME (SESSION) …` is somebody's act. The session's first word is the protocol; the rest tells several sessions of
//!   one actor apart, and `3.1.1` chooses that version of MQTT.
//! - `"…"` is a text, with `\n`, `\r`, `\"`, `\\` and `\xNN` for a byte. `{Name}` in it is the actor's id in topics (a
//!   device's id, an account's local part), `{Name.jid}` its bare JID.
//! - A step that ends in a colon has the indented lines after it as its text (a bot's script, a configuration).
//! - `and is refused with X` turns a step round: it must fail with X, which is the protocol's own word (`forbidden`,
//!   `0x87`, `4.03`).
//! - `sees …` waits for what is to come; `sees nothing more` asks the broker something that it answers in order, and then
//!   looks. No step sleeps for a fixed time.
//!
//! A step that nobody knows fails with the list of the steps that there are: the tables `VOCABULARY` in `scenario/`.

pub mod broker;
pub mod coap;
pub mod inbox;
pub mod mqtt;
pub mod mqtt_wire;
pub mod scenario;
pub mod scram;
pub mod xml_stream;
pub mod xmpp;

pub use broker::Broker;
