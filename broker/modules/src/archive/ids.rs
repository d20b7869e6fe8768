//! Archive ids as others see them (XEP-0359 §3): of a row's number nothing can be told, and none can be guessed.
//!
//! A number is the time and the order of its message, which XEP-0359 §6 wants to be seen by nobody. So it is encrypted
//! under a key of the account, with a check that depends on it (the form of RFC 5297): an id that was never given out
//! stands for no number.

use sha2::{Digest as _, Sha256};

/// The key of one account's ids.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct IdKey([u8; IdKey::LEN]);

impl IdKey {
    const LEN: usize = 32;

    /// A new one.
    pub fn draw() -> Option<IdKey> {
        let mut key = [0; IdKey::LEN];
        getrandom::fill(&mut key).ok().map(|()| IdKey(key))
    }

    /// One that was written by [`IdKey::to_text`].
    pub fn parse(text: &str) -> Option<IdKey> {
        let (a, b) = text.split_at_checked(IdKey::LEN)?;
        let halves = [hex(a)?, hex(b)?].map(u128::to_be_bytes);
        halves.concat().try_into().ok().map(IdKey)
    }

    /// For the store.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The id of a row.
    pub fn text(&self, number: u64) -> String {
        let check = self.hash(b'c', number);
        format!("{check:016x}{:016x}", number ^ self.hash(b'm', check))
    }

    /// The row of an id, if it is one of this account's.
    pub fn number(&self, text: &str) -> Option<u64> {
        if text.len() != 32 {
            return None;
        }
        let whole = hex(text)?;
        let (check, masked) = ((whole >> 64) as u64, whole as u64);
        let number = masked ^ self.hash(b'm', check);
        (number != 0 && self.hash(b'c', number) == check).then_some(number)
    }

    /// All inputs are of one length, so no hash tells anything of another one.
    fn hash(&self, what: u8, input: u64) -> u64 {
        let hash = Sha256::new().chain_update(self.0).chain_update([what]).chain_update(input.to_be_bytes()).finalize();
        hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// Lower case digits only: of one id there is one spelling.
fn hex(text: &str) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.bytes().all(is_digit).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_lead_back_to_their_numbers_and_no_others_do() {
        let (key, other) = (IdKey::draw().unwrap(), IdKey::draw().unwrap());
        assert!(IdKey::parse(&key.to_text()) == Some(key.clone()));
        for number in [1, 2, 3, 1 << 40, u64::MAX] {
            let text = key.text(number);
            assert_eq!((key.number(&text), other.number(&text)), (Some(number), None));
            for at in 0..32 {
                let digit = if &text[at..=at] == "0" { "1" } else { "0" };
                assert_eq!(key.number(&[&text[..at], digit, &text[at + 1..]].concat()), None);
            }
        }
        for wrong in ["", "0", "é", &"0".repeat(32), &"g".repeat(32), &"+".repeat(32), &"ä".repeat(16), &"0".repeat(33)]
        {
            assert_eq!(key.number(wrong), None, "{wrong}");
        }
        assert!(IdKey::parse(&"ä".repeat(32)).is_none() && IdKey::parse("00").is_none());
    }

    #[test]
    fn neighbours_have_nothing_in_common() {
        let key = IdKey::draw().unwrap();
        let texts: Vec<String> = (1_000..1_100).map(|number| key.text(number)).collect();
        for half in [0..16, 16..32] {
            let halves: HashSet<&str> = texts.iter().map(|text| &text[half.clone()]).collect();
            assert_eq!(halves.len(), 100);
            // All digits occur at the first place: it does not grow with the number.
            let first: HashSet<&str> = texts.iter().map(|text| &text[half.start..=half.start]).collect();
            assert!(first.len() > 8, "{first:?}");
        }
    }
}
