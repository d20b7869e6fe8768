//! `/.well-known/core`: the list of what the asker may retrieve, in link format (RFC 6690).

use std::fmt::Write;

/// The most bytes of one list; its last link tells where the rest is (RFC 8288 §3.3: `rel="next"`).
const MAX_LIST: usize = 32 * 1024;
/// The resource type of each topic (RFC 6690 §3.1).
const RESOURCE_TYPE: &str = "tavi.topic";

/// The query that asks for what stands behind a topic.
const AFTER: &str = "after";
/// RFC 7252 §5.10: a Uri-Query has at most 255 bytes.
const MAX_AFTER: usize = 255 - AFTER.len() - 1;

/// The filter of a discovery: all conditions have to hold (RFC 6690 §4.1). `after=TOPIC` is none: it tells where the list
/// goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    conditions: Vec<Condition>,
    after: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Condition {
    attribute: String,
    wanted: String,
    prefix: bool,
}

impl Filter {
    /// The filter of the request's Uri-Query values; `None` if one is not `attribute=value`.
    pub fn parse<'a>(queries: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut filter = Self::default();
        for condition in queries.map(Condition::parse) {
            let condition = condition?;
            if condition.attribute == AFTER {
                filter.after = Some(condition.wanted);
            } else {
                filter.conditions.push(condition);
            }
        }
        Some(filter)
    }

    /// Behind which topic the list begins.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    fn accepts(&self, link: &Link<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(link))
    }
}

impl Condition {
    fn parse(query: &str) -> Option<Self> {
        let (attribute, value) = query.split_once('=')?;
        // RFC 6690 §4.1: a `*` at the end makes it a prefix.
        let (wanted, prefix) = value.strip_suffix('*').map_or((value, false), |wanted| (wanted, true));
        Some(Self { attribute: attribute.to_owned(), wanted: wanted.to_owned(), prefix })
    }

    fn holds(&self, link: &Link<'_>) -> bool {
        match self.attribute.as_str() {
            "href" => self.fits(&href(link.topic)),
            "rt" => self.fits(RESOURCE_TYPE),
            "ct" => link.format.is_some_and(|format| self.fits(&format.to_string())),
            "obs" => self.fits(""),
            _ => false,
        }
    }

    fn fits(&self, value: &str) -> bool {
        if self.prefix { value.starts_with(&self.wanted) } else { value == self.wanted }
    }
}

/// A topic that has a value.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The Content-Format of its value.
    pub format: Option<u16>,
}

/// The list of `links` that the filter lets through: at most 32 KiB, whole links only. If that leaves some out, or more
/// stand behind the topic `next`, the last link says where to go on.
pub fn list<'a>(links: impl Iterator<Item = Link<'a>>, filter: &Filter, next: Option<&'a str>) -> String {
    let (mut text, mut next, mut last) = (String::new(), next, None);
    for link in links {
        let before = text.len();
        if filter.accepts(&link) {
            emit(&mut text, &link);
        }
        if text.len() > MAX_LIST {
            text.truncate(before);
            next = last;
            break;
        }
        last = Some(link.topic);
    }
    next.into_iter().for_each(|next| emit_next(&mut text, filter, next));
    text
}

fn emit_next(text: &mut String, filter: &Filter, topic: &str) {
    let topic = &topic[..topic.floor_char_boundary(MAX_AFTER)];
    if filter.after().is_some_and(|after| topic <= after) {
        // Nothing that fits into a query leads on.
        return;
    }
    text.push_str(if text.is_empty() { "" } else { "," });
    text.push_str("</.well-known/core?");
    for Condition { attribute, wanted, prefix } in &filter.conditions {
        let star = if *prefix { "*" } else { "" };
        let _ = write!(text, "{}={}{star}&", encoded(attribute), encoded(wanted)); // writing to a String does not fail
    }
    let _ = write!(text, "{AFTER}={}>;rel=\"next\"", encoded(topic)); // writing to a String does not fail
}

fn emit(text: &mut String, link: &Link<'_>) {
    if !text.is_empty() {
        text.push(',');
    }
    text.push('<');
    text.push_str(&href(link.topic));
    let _ = write!(text, ">;rt=\"{RESOURCE_TYPE}\";obs"); // writing to a String does not fail
    if let Some(format) = link.format {
        let _ = write!(text, ";ct={format}");
    }
}

/// The path of a topic, with all that is no `pchar` percent-encoded (RFC 3986 §3.3, RFC 7252 §6.5).
fn href(topic: &str) -> String {
    format!("/t/{}", percent(topic, b"/-._~!$&'()*+,;=:@"))
}

/// A part of a query, so that it is one Uri-Query (RFC 7252 §6.5).
fn encoded(part: &str) -> String {
    percent(part, b"/-._~!$'()+,;:@")
}

fn percent(text: &str, legal: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || legal.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // writing to a String does not fail
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(queries: &[&str]) -> String {
        let links = [Link { topic: "d/1/up/t", format: Some(50) }, Link { topic: "u/a b//>", format: None }];
        list(links.into_iter(), &Filter::parse(queries.iter().copied()).unwrap(), None)
    }

    #[test]
    fn everything_is_listed_with_its_path_encoded() {
        let both = "</t/d/1/up/t>;rt=\"tavi.topic\";obs;ct=50,</t/u/a%20b//%3E>;rt=\"tavi.topic\";obs";
        assert_eq!(listed(&[]), both);
        assert_eq!(listed(&["rt=tavi.*"]), both);
    }

    #[test]
    fn a_filter_selects_by_path_type_and_format() {
        assert_eq!(listed(&["href=/t/d/*"]), "</t/d/1/up/t>;rt=\"tavi.topic\";obs;ct=50");
        assert_eq!(listed(&["href=/t/d"]), "");
        assert_eq!(listed(&["ct=50", "href=/t/u*"]), "");
        assert_eq!(listed(&["if=core.s"]), "");
        assert_eq!(Filter::parse(["nonsense"].into_iter()), None);
    }

    #[test]
    fn a_long_list_ends_with_a_whole_link() {
        let topics: Vec<String> = (0..2000).map(|n| format!("d/{n}/up/temperature")).collect();
        let links = topics.iter().map(|topic| Link { topic, format: None });
        let text = list(links, &Filter::default(), None);
        let (whole, next) = text.rsplit_once(',').unwrap();
        assert!(whole.len() <= MAX_LIST && whole.len() > MAX_LIST - 64 && whole.ends_with(";obs"));
        let last = whole.rsplit_once("</t/").unwrap().1.split_once('>').unwrap().0;
        assert_eq!(next, format!("</.well-known/core?after={last}>;rel=\"next\""));
    }

    #[test]
    fn the_next_link_repeats_the_filter_and_leads_on() {
        let filter = |queries: &[&str]| Filter::parse(queries.iter().copied()).unwrap();
        let next = |filter: &Filter, topic| list(std::iter::empty(), filter, Some(topic));
        let first = next(&filter(&["href=/t/d/*", "ct=50"]), "d/a b&c");
        assert_eq!(first, "</.well-known/core?href=/t/d/*&ct=50&after=d/a%20b%26c>;rel=\"next\"");
        assert_eq!(filter(&["after=d/a b&c"]).after(), Some("d/a b&c"));
        let long = "x".repeat(1000);
        let cut = next(&filter(&[]), &long);
        assert_eq!(cut.len(), "</.well-known/core?after=>;rel=\"next\"".len() + MAX_AFTER);
        assert_eq!(next(&filter(&[&format!("after={}", &long[..MAX_AFTER])]), &long), "");
    }
}
