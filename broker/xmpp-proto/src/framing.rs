//! Finds where stanzas begin and end in received bytes, in one pass, whatever the pieces they come in (RFC 6120 §4.2).
//!
//! The framer only follows tags, quotes and CDATA; whether a frame is well-formed is decided by the validating pass
//! over it. Every misframing leaves a frame that is not exactly one element, which that pass refuses.

use memchr::{memchr, memchr3};
use smallvec::SmallVec;

use crate::error::{StreamCondition, StreamError};

/// What a peer may ask us to hold. RFC 6120 §13.12 wants such limits; a stanza limit under 10,000 octets is illegal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Octets of one top-level element or of the stream header.
    pub stanza: usize,
    /// Open elements at the same time, the stream not counted.
    pub depth: usize,
    /// Attributes of one element, namespace declarations counted.
    pub attributes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { stanza: 256 * 1024, depth: 100, attributes: 64 }
    }
}

impl Limits {
    /// What a peer is allowed that has not authenticated yet, RFC 6120 §13.12.
    pub const BEFORE_LOGIN: Limits = Limits { stanza: 16 * 1024, depth: 16, attributes: 32 };
}

/// A piece of the stream that can be looked at on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `<?xml …?>`, only at the start of a stream.
    Declaration(&'a [u8]),
    /// The start tag of the stream.
    Header(&'a [u8]),
    /// One complete child of the stream.
    Element(&'a [u8]),
    /// The end tag of the stream.
    Close(&'a [u8]),
}

/// The incremental framer. While idle between stanzas it holds no memory.
#[derive(Debug)]
pub struct Framer {
    partial: Vec<u8>,
    limit: usize,
    depth_limit: usize,
    /// Open elements, the stream counted.
    depth: usize,
    place: Place,
    /// The byte before, needed for `/>` and `?>` over a split.
    last: u8,
    stream: Stream,
    /// Hashes of the names of the open elements within the stream: a wrong end tag is told at once, not when the
    /// frame would be complete, which might be never.
    names: SmallVec<[u32; 8]>,
    /// Hash of the name that is being read.
    name: u32,
}

/// FNV-1a: only tells names apart; the validating pass compares them.
const NAME_SEED: u32 = 0x811C_9DC5;

fn hash_name(hash: u32, name: &[u8]) -> u32 {
    name.iter().fold(hash, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    /// Nothing of this stream was seen.
    New,
    /// The declaration was seen.
    Declared,
    /// The header was seen.
    Open,
}

/// Where in the XML the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before or between frames.
    Between,
    /// Behind a `<`.
    Angle,
    /// In the name of a start tag.
    Name,
    /// In a start tag, behind its name.
    Start,
    /// In a quoted value of a start tag.
    Quote(u8),
    /// In the name of an end tag.
    End,
    /// In an end tag, behind its name.
    EndSpace,
    /// In character data.
    Text,
    /// Behind `<!` and this many octets of `[CDATA[`.
    Bang(u8),
    /// In a CDATA section, behind this many `]`.
    Cdata(u8),
    /// In the XML declaration.
    Declaration,
    /// The frame is complete and was handed out.
    Done,
}

const CDATA: &[u8] = b"[CDATA[";

impl Framer {
    /// A framer at the start of a stream.
    pub fn new(limits: &Limits) -> Framer {
        Framer {
            partial: Vec::new(),
            limit: limits.stanza,
            depth_limit: limits.depth + 1,
            depth: 0,
            place: Place::Between,
            last: 0,
            stream: Stream::New,
            names: SmallVec::new(),
            name: NAME_SEED,
        }
    }

    /// A framer of elements without a stream around them.
    pub(crate) fn inside(limits: &Limits) -> Framer {
        Framer { depth: 1, stream: Stream::Open, ..Framer::new(limits) }
    }

    /// The next bytes belong to a new stream (after STARTTLS and after SASL, RFC 6120 §4.3.3).
    pub fn restart(&mut self) {
        (self.depth, self.place, self.stream) = (0, Place::Between, Stream::New);
        self.partial = Vec::new();
        self.names.clear();
    }

    /// Takes new limits (after login).
    pub fn set_limits(&mut self, limits: &Limits) {
        (self.limit, self.depth_limit) = (limits.stanza, limits.depth + 1);
    }

    /// Octets of an unfinished frame that are held.
    pub fn held(&self) -> usize {
        self.partial.len()
    }

    /// Takes one frame off the front of `input`; `None` when more bytes are needed (then `input` is empty and
    /// what belongs to an unfinished frame is kept).
    ///
    /// # Errors
    /// The stream error to close the stream with; afterwards the framer must not be used.
    pub fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Option<Frame<'a>>, StreamError> {
        if self.place == Place::Done {
            (self.place, self.partial) = (Place::Between, Vec::new());
        }
        if self.place == Place::Between {
            *input = self.skip_white_space(input)?;
            if input.is_empty() {
                return Ok(None);
            }
        }
        let (part, end) = self.scan(input)?;
        let (frame, rest) = input.split_at(part);
        if self.partial.len() + frame.len() > self.limit {
            let text = format!("an element of the stream may have at most {} octets", self.limit);
            return Err(StreamError::new(StreamCondition::PolicyViolation).text(text));
        }
        *input = rest;
        let Some(end) = end else {
            self.partial.extend_from_slice(frame);
            return Ok(None);
        };
        self.place = Place::Done;
        Ok(Some(end(self.join(frame))))
    }

    /// The whole frame: usually it came in one piece and is not copied.
    fn join<'a>(&'a mut self, last: &'a [u8]) -> &'a [u8] {
        if self.partial.is_empty() {
            return last;
        }
        self.partial.extend_from_slice(last);
        &self.partial
    }

    /// RFC 6120 §4.6.1: white space between stanzas is a keep-alive. Other text does not belong there.
    fn skip_white_space<'a>(&self, input: &'a [u8]) -> Result<&'a [u8], StreamError> {
        let spaces = input.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
        let rest = &input[spaces.unwrap_or(input.len())..];
        match rest.first() {
            None | Some(b'<') => Ok(rest),
            // RFC 6120 §11.6: UTF-16 shows itself by a byte order mark or by a zero octet.
            Some(0 | 0xFE | 0xFF) if self.stream == Stream::New => Err(StreamCondition::UnsupportedEncoding.into()),
            Some(_) if self.stream == Stream::Open => {
                Err(StreamError::new(StreamCondition::BadFormat).text("text between stanzas"))
            }
            Some(_) => Err(StreamError::new(StreamCondition::NotWellFormed).text("this is an XMPP port")),
        }
    }

    /// Reads to the end of the frame or of the input; gives the octets read and what the frame is.
    fn scan<'a>(&mut self, input: &[u8]) -> Result<(usize, Option<MakeFrame<'a>>), StreamError> {
        let mut at = 0;
        while at < input.len() {
            let (step, end) = self.step(&input[at..])?;
            at += step;
            self.last = input[at - 1];
            if end.is_some() {
                return Ok((at, end));
            }
        }
        Ok((at, None))
    }

    /// Takes at least one octet of `rest`, which is not empty.
    fn step<'a>(&mut self, rest: &[u8]) -> Result<(usize, Option<MakeFrame<'a>>), StreamError> {
        match self.place {
            Place::Text => Ok((self.skip_to(memchr(b'<', rest), rest, Place::Angle), None)),
            Place::Name => self.tag_name(rest),
            Place::Start => self.start_tag(rest),
            Place::Quote(quote) => Ok((self.skip_to(memchr(quote, rest), rest, Place::Start), None)),
            Place::End => self.end_name(rest),
            Place::EndSpace => self.end_tag(rest[0]).map(|end| (1, end)),
            Place::Angle => self.angle(rest[0]).map(|()| (1, None)),
            Place::Cdata(brackets) => Ok((self.cdata(brackets, rest), None)),
            Place::Bang(matched) => self.bang(matched, rest[0]).map(|()| (1, None)),
            Place::Declaration => Ok(self.declaration(rest)),
            Place::Between | Place::Done => {
                self.place = Place::Angle;
                Ok((1, None))
            }
        }
    }

    /// Skips past what was found, or everything.
    fn skip_to(&mut self, found: Option<usize>, rest: &[u8], next: Place) -> usize {
        match found {
            Some(at) => {
                self.place = next;
                at + 1
            }
            None => rest.len(),
        }
    }

    fn angle(&mut self, byte: u8) -> Result<(), StreamError> {
        self.name = hash_name(NAME_SEED, if byte == b'/' { &[] } else { std::slice::from_ref(&byte) });
        self.place = match byte {
            b'/' => Place::End,
            b'!' => Place::Bang(0),
            b'?' if self.stream == Stream::New && self.depth == 0 => Place::Declaration,
            // RFC 6120 §11.1: no processing instructions.
            b'?' => return Err(restricted("a processing instruction")),
            b'>' => return Err(StreamCondition::NotWellFormed.into()),
            _ => Place::Name,
        };
        Ok(())
    }

    fn tag_name<'a>(&mut self, rest: &[u8]) -> Result<(usize, Option<MakeFrame<'a>>), StreamError> {
        let ends = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'/' | b'>' | b'"' | b'\'');
        let end = rest.iter().position(ends);
        self.name = hash_name(self.name, &rest[..end.unwrap_or(rest.len())]);
        match end {
            None => Ok((rest.len(), None)),
            Some(0) => {
                self.place = Place::Start;
                self.start_tag(rest)
            }
            Some(at) => {
                self.place = Place::Start;
                Ok((at, None))
            }
        }
    }

    fn start_tag<'a>(&mut self, rest: &[u8]) -> Result<(usize, Option<MakeFrame<'a>>), StreamError> {
        let Some(at) = memchr3(b'>', b'"', b'\'', rest) else { return Ok((rest.len(), None)) };
        if rest[at] != b'>' {
            self.place = Place::Quote(rest[at]);
            return Ok((at + 1, None));
        }
        let before = if at > 0 { rest[at - 1] } else { self.last };
        Ok((at + 1, self.opened(before == b'/')?))
    }

    /// A start tag is complete.
    fn opened<'a>(&mut self, empty: bool) -> Result<Option<MakeFrame<'a>>, StreamError> {
        self.place = Place::Text;
        match (self.depth, empty) {
            (0, true) => Err(StreamError::new(StreamCondition::BadFormat).text("a stream can not be an empty element")),
            (0, false) => {
                (self.depth, self.stream) = (1, Stream::Open);
                Ok(Some(Frame::Header))
            }
            (1, true) => Ok(Some(Frame::Element)),
            (_, true) => Ok(None),
            (depth, false) if depth >= self.depth_limit => {
                Err(StreamError::new(StreamCondition::PolicyViolation).text("elements are nested too deep"))
            }
            (_, false) => {
                self.depth += 1;
                self.names.push(self.name);
                Ok(None)
            }
        }
    }

    fn end_name<'a>(&mut self, rest: &[u8]) -> Result<(usize, Option<MakeFrame<'a>>), StreamError> {
        let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'>'));
        self.name = hash_name(self.name, &rest[..end.unwrap_or(rest.len())]);
        let Some(at) = end else { return Ok((rest.len(), None)) };
        self.place = Place::EndSpace;
        Ok((at + 1, self.end_tag(rest[at])?))
    }

    /// XML 1.0 §3.1: behind the name of an end tag there is only white space.
    fn end_tag<'a>(&mut self, byte: u8) -> Result<Option<MakeFrame<'a>>, StreamError> {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => return Ok(None),
            b'>' => self.place = Place::Text,
            _ => return Err(StreamCondition::NotWellFormed.into()),
        }
        let depth = self.depth.checked_sub(1).ok_or(StreamCondition::NotWellFormed)?;
        if depth > 0 && self.names.pop() != Some(self.name) {
            return Err(StreamError::new(StreamCondition::NotWellFormed).text("an end tag closes another element"));
        }
        self.depth = depth;
        let end: Option<MakeFrame<'a>> = match depth {
            0 => Some(Frame::Close),
            1 => Some(Frame::Element),
            _ => None,
        };
        Ok(end)
    }

    /// RFC 6120 §11.1: no comments and no DTD; CDATA sections are ordinary XML.
    fn bang(&mut self, matched: u8, byte: u8) -> Result<(), StreamError> {
        if CDATA[matched as usize] != byte {
            return Err(restricted("a comment or a document type"));
        }
        let matched = matched + 1;
        if (matched as usize) < CDATA.len() {
            self.place = Place::Bang(matched);
            return Ok(());
        }
        if self.depth < 2 {
            return Err(StreamError::new(StreamCondition::BadFormat).text("text between stanzas"));
        }
        self.place = Place::Cdata(0);
        Ok(())
    }

    fn cdata(&mut self, brackets: u8, rest: &[u8]) -> usize {
        if brackets == 0 {
            return self.skip_to(memchr(b']', rest), rest, Place::Cdata(1));
        }
        self.place = match (rest[0], brackets) {
            (b'>', 2) => Place::Text,
            (b']', _) => Place::Cdata(2),
            _ => Place::Cdata(0),
        };
        1
    }

    fn declaration<'a>(&mut self, rest: &[u8]) -> (usize, Option<MakeFrame<'a>>) {
        match memchr(b'>', rest) {
            Some(at) => {
                self.stream = Stream::Declared;
                (at + 1, Some(Frame::Declaration))
            }
            None => (rest.len(), None),
        }
    }
}

type MakeFrame<'a> = fn(&'a [u8]) -> Frame<'a>;

fn restricted(what: &str) -> StreamError {
    StreamError::new(StreamCondition::RestrictedXml).text(format!("{what} is not allowed in XMPP"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds pieces and notes the frames, and the error if there was one.
    fn frames(pieces: &[&[u8]], limits: &Limits) -> Vec<String> {
        let mut framer = Framer::new(limits);
        let mut seen = Vec::new();
        for piece in pieces {
            let mut input = *piece;
            loop {
                match framer.next(&mut input) {
                    Ok(Some(frame)) => seen.push(show(frame)),
                    Ok(None) => break,
                    Err(error) => {
                        seen.push(error.condition.name().to_owned());
                        return seen;
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn a_wrong_end_tag_is_told_at_once_however_it_is_split() {
        let limits = Limits::default();
        let text: &[u8] = b"<s:s><message><body>x</message>";
        assert_eq!(frames(&[text], &limits), ["header <s:s>", "not-well-formed"]);
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(frames(&bytes, &limits), ["header <s:s>", "not-well-formed"]);
        let gap: Vec<&[u8]> = b"<s:s><message><ab></a b>".chunks(22).collect();
        assert_eq!(frames(&gap, &limits), ["header <s:s>", "not-well-formed"]);
        let good: Vec<&[u8]> = b"<s:s><iq ><a/><b></b ></iq\n>".chunks(1).collect();
        assert_eq!(frames(&good, &limits).len(), 2);
    }

    fn show(frame: Frame<'_>) -> String {
        let (what, bytes) = match frame {
            Frame::Declaration(bytes) => ("decl", bytes),
            Frame::Header(bytes) => ("header", bytes),
            Frame::Element(bytes) => ("element", bytes),
            Frame::Close(bytes) => ("close", bytes),
        };
        format!("{what} {}", String::from_utf8_lossy(bytes))
    }

    const STREAM: &str =
        "<?xml version='1.0'?>\n<s:s a='>'> <a/> \n<b c=\"/>\">x<c>y</c ><d/><![CDATA[</b>]]]]></b ></s:s>";

    #[test]
    fn a_stream_in_one_piece() {
        let seen = frames(&[STREAM.as_bytes()], &Limits::default());
        assert_eq!(
            seen,
            [
                "decl <?xml version='1.0'?>",
                "header <s:s a='>'>",
                "element <a/>",
                "element <b c=\"/>\">x<c>y</c ><d/><![CDATA[</b>]]]]></b >",
                "close </s:s>",
            ]
        );
    }

    #[test]
    fn a_stream_octet_by_octet_gives_the_same() {
        let pieces: Vec<&[u8]> = STREAM.as_bytes().chunks(1).collect();
        assert_eq!(frames(&pieces, &Limits::default()), frames(&[STREAM.as_bytes()], &Limits::default()));
    }

    #[test]
    fn a_new_stream_knows_nothing_of_the_old_one() {
        let mut framer = Framer::new(&Limits::default());
        for _ in 0..2 {
            let mut input: &[u8] = b"<?xml version='1.0'?><s:s><message><bo";
            assert!(matches!(framer.next(&mut input), Ok(Some(Frame::Declaration(_)))));
            assert!(matches!(framer.next(&mut input), Ok(Some(Frame::Header(b"<s:s>")))));
            assert!(matches!(framer.next(&mut input), Ok(None)));
            assert_eq!(framer.held(), "<message><bo".len());
            framer.restart();
            assert_eq!(framer.held(), 0);
        }
        let mut input: &[u8] = b"<s:s><a></a>";
        assert!(matches!(framer.next(&mut input), Ok(Some(Frame::Header(_)))));
        assert!(matches!(framer.next(&mut input), Ok(Some(Frame::Element(b"<a></a>")))));
    }

    #[test]
    fn what_is_restricted_or_too_large() {
        let limits = Limits { stanza: 20, depth: 2, attributes: 5 };
        let last = |text: &str| frames(&[text.as_bytes()], &limits).pop().unwrap_or_default();
        assert_eq!(last("<s><!-- c -->"), "restricted-xml");
        assert_eq!(last("<!DOCTYPE s>"), "restricted-xml");
        assert_eq!(last("<s><?pi?>"), "restricted-xml");
        assert_eq!(last("<?xml?> <?xml?>"), "restricted-xml");
        assert_eq!(last("<s>text"), "bad-format");
        assert_eq!(last("<s><![CDATA[x]]>"), "bad-format");
        assert_eq!(last("GET / HTTP/1.1"), "not-well-formed");
        assert_eq!(last("\u{0}<\u{0}s"), "unsupported-encoding");
        assert_eq!(last("<s/>"), "bad-format");
        assert_eq!(last("</s>"), "not-well-formed");
        assert_eq!(last("<s><a><b><c>"), "policy-violation");
        assert_eq!(last("<s><a>12345678901234567890</a>"), "policy-violation");
        assert_eq!(last("<s><a>1234567890"), "header <s>");
    }

    #[test]
    fn an_endless_stanza_is_refused_before_it_is_held() {
        let limits = Limits { stanza: 100, ..Limits::default() };
        let mut framer = Framer::new(&limits);
        let mut refused = false;
        let mut input: &[u8] = b"<s>";
        framer.next(&mut input).unwrap();
        for _ in 0..200 {
            let mut input: &[u8] = b"<a>";
            refused = framer.next(&mut input).is_err();
            assert!(framer.held() <= 100);
            if refused {
                break;
            }
        }
        assert!(refused);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(text in "(<s>)?([<>/a'\"!\\[\\]CDATA? -]|<a>|<aa>|</a>|</aa >|<!\\[CDATA\\[|\\]\\]>){0,30}", at in 0usize..60) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            let whole = frames(&[bytes], &Limits::default());
            let split = frames(&[&bytes[..at], &bytes[at..]], &Limits::default());
            prop_assert_eq!(whole, split);
        }
    }
}
