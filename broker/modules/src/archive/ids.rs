//! Archive ids as others see them (XEP-0359 §3): of a row's number nothing can be told, and none can be guessed.
//!
//! A number is the time and the order of its message, which XEP-0359 §6 wants to be seen by nobody. So it is one block of
//! AES under a key of the account: the number and as many bits of zero, which tell an id that was given out from one that
//! was not.

use aes::{
    Aes128,
    cipher::{BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _},
};

/// The key of one account's ids.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct IdKey([u8; IdKey::LEN]);

impl IdKey {
    const LEN: usize = 16;

    /// A new one.
    pub fn draw() -> Option<IdKey> {
        let mut key = [0; IdKey::LEN];
        getrandom::fill(&mut key).ok().map(|()| IdKey(key))
    }

    /// One that was written by [`IdKey::to_text`].
    pub fn parse(text: &str) -> Option<IdKey> {
        if text.len() != 2 * IdKey::LEN {
            return None;
        }
        hex(text).map(|key| IdKey(key.to_be_bytes()))
    }

    /// For the store.
    pub fn to_text(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The id of a row.
    pub fn text(&self, number: u64) -> String {
        let mut block = (u128::from(number) << 64).to_be_bytes().into();
        Aes128::new(&self.0.into()).encrypt_block(&mut block);
        format!("{:032x}", u128::from_be_bytes(block.into()))
    }

    /// The row of an id, if it is one of this account's.
    pub fn number(&self, text: &str) -> Option<u64> {
        if text.len() != 32 {
            return None;
        }
        let mut block = hex(text)?.to_be_bytes().into();
        Aes128::new(&self.0.into()).decrypt_block(&mut block);
        let whole = u128::from_be_bytes(block.into());
        let (number, zero) = ((whole >> 64) as u64, whole as u64);
        (number != 0 && zero == 0).then_some(number)
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
        assert!(IdKey::parse(&"ä".repeat(16)).is_none() && IdKey::parse("00").is_none());
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
