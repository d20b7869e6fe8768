//! Cuts the bytes of an XMPP stream (RFC 6120 §4) into its parts, simply and by rescanning: for tests only.

/// One part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The start tag of the stream.
    Open(String),
    /// A whole child of the stream.
    Element(String),
    /// The end tag of the stream.
    Close,
}

/// Bytes received and not yet cut.
#[derive(Debug, Default)]
pub struct Cutter {
    bytes: Vec<u8>,
}

impl Cutter {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole part; `None` until more bytes come.
    pub fn next_part(&mut self) -> Option<Part> {
        self.skip_declaration();
        let end = part_end(&self.bytes)?;
        let text = String::from_utf8_lossy(&self.bytes.drain(..end).collect::<Vec<_>>()).trim().to_owned();
        Some(if text.starts_with("</") {
            Part::Close
        } else if text.starts_with("<stream:stream") {
            Part::Open(text)
        } else {
            Part::Element(text)
        })
    }

    fn skip_declaration(&mut self) {
        let text = String::from_utf8_lossy(&self.bytes);
        let blank = text.len() - text.trim_start().len();
        if text[blank..].starts_with("<?xml")
            && let Some(end) = text.find("?>")
        {
            self.bytes.drain(..end + 2);
        }
    }
}

/// Index after the first whole part.
fn part_end(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let start = at + bytes[at..].iter().position(|byte| *byte == b'<')?;
        let end = start + tag_end(&bytes[start..])?;
        let tag = &bytes[start..end];
        if depth == 0 && (tag.starts_with(b"<stream:stream") || tag.starts_with(b"</")) {
            return Some(end);
        }
        match tag {
            [_, b'/', ..] => depth -= 1,
            [.., b'/', _] => {}
            _ => depth += 1,
        }
        if depth == 0 {
            return Some(end);
        }
        at = end;
    }
}

/// Index after the `>` that ends a tag; a quoted `>` does not.
fn tag_end(bytes: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'\'' | b'"') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_a_stream_that_comes_byte_by_byte() {
        let stream = "<?xml version='1.0'?><stream:stream id='>'><a b='/>'><b/>x</a> <r/></stream:stream>";
        let mut cutter = Cutter::default();
        let mut parts = Vec::new();
        for byte in stream.bytes() {
            cutter.push(&[byte]);
            parts.extend(cutter.next_part());
        }
        let expected = ["<a b='/>'><b/>x</a>", "<r/>"].map(|text| Part::Element(text.into()));
        assert_eq!(parts[0], Part::Open("<stream:stream id='>'>".into()));
        assert_eq!(parts[1..3], expected);
        assert_eq!(parts[3], Part::Close);
    }
}
