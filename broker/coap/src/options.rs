//! Which options a request may carry, and the refusal of one that carries others (RFC 7252 §5.4).

use crate::message::{Code, Message, option};

/// The refusal of a request whose critical options are unknown, repeated or of a wrong length (RFC 7252 §5.4).
pub(crate) fn refuse_options(message: &Message) -> Option<Message> {
    // RFC 7252 §5.7.2: a server that is no proxy says 5.05.
    if message.value(option::PROXY_URI).or(message.value(option::PROXY_SCHEME)).is_some() {
        return Some(Message::new(Code::NO_PROXYING));
    }
    let mut before = None;
    for (number, value) in message.options() {
        let repeated = before.replace(number) == Some(number);
        // RFC 7252 §5.4.6: an odd number is critical; elective options that are not understood are ignored.
        if number % 2 == 1 && !is_known(number, value, repeated) {
            return Some(bad_option(number));
        }
    }
    None
}

fn is_known(number: u16, value: &[u8], repeated: bool) -> bool {
    let known = KNOWN.iter().find(|known| known.0 == number);
    known.is_some_and(|Known(_, times, length)| length.contains(&value.len()) && (!repeated || *times == Times::Many))
}

/// RFC 7252 §5.4.1: the diagnostic payload names the option.
fn bad_option(number: u16) -> Message {
    let mut response = Message::new(Code::BAD_OPTION);
    response.set_payload(format!("option {number} is not supported here").as_bytes());
    response
}

/// An option that a request may carry: number, may it stand more than once, and its longest and shortest value.
struct Known(u16, Times, std::ops::RangeInclusive<usize>);

#[derive(PartialEq)]
enum Times {
    Once,
    Many,
}

/// RFC 7252 §5.10 table 4, RFC 7641 §2, RFC 7959 §2.1.
///
/// If-Match and If-None-Match are absent: a precondition must hold against publishers of all protocols at once, and
/// topics have no such operation. Being critical, they are refused with 4.02 rather than half kept (§5.4.1).
const KNOWN: &[Known] = &[
    Known(option::URI_HOST, Times::Once, 1..=255),
    Known(option::URI_PORT, Times::Once, 0..=2),
    Known(option::URI_PATH, Times::Many, 0..=255),
    Known(option::URI_QUERY, Times::Many, 0..=255),
    Known(option::ACCEPT, Times::Once, 0..=2),
    Known(option::BLOCK2, Times::Once, 0..=3),
    Known(option::BLOCK1, Times::Once, 0..=3),
];
