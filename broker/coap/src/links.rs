//! `/.well-known/core`: the list of what the asker may retrieve, in link format (RFC 6690).

use std::fmt::Write;

/// The most bytes of one list; topics beyond are left out.
const MAX_LIST: usize = 32 * 1024;
/// The resource type of each topic (RFC 6690 §3.1).
const RESOURCE_TYPE: &str = "tavi.topic";

/// The filter of a discovery: all conditions have to hold (RFC 6690 §4.1).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter(Vec<Condition>);

#[derive(Clone, Debug, PartialEq)]
struct Condition {
    attribute: String,
    wanted: String,
    prefix: bool,
}

impl Filter {
    /// The filter of the request's Uri-Query values; `None` if one is not `attribute=value`.
    pub fn parse<'a>(queries: impl Iterator<Item = &'a str>) -> Option<Self> {
        queries.map(Condition::parse).collect::<Option<Vec<_>>>().map(Self)
    }

    fn accepts(&self, link: &Link<'_>) -> bool {
        self.0.iter().all(|condition| condition.holds(link))
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

/// The list of `links` that the filter lets through: at most 32 KiB, whole links only.
pub fn list<'a>(links: impl Iterator<Item = Link<'a>>, filter: &Filter) -> String {
    let mut text = String::new();
    for link in links.filter(|link| filter.accepts(link)) {
        let before = text.len();
        emit(&mut text, &link);
        if text.len() > MAX_LIST {
            text.truncate(before);
            break;
        }
    }
    text
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
    let mut path = String::from("/t/");
    for byte in topic.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            let _ = write!(path, "%{byte:02X}"); // writing to a String does not fail
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(queries: &[&str]) -> String {
        let links = [Link { topic: "d/1/up/t", format: Some(50) }, Link { topic: "u/a b//>", format: None }];
        list(links.into_iter(), &Filter::parse(queries.iter().copied()).unwrap())
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
        let text = list(links, &Filter::default());
        assert!(text.len() <= MAX_LIST && text.len() > MAX_LIST - 64);
        assert!(text.ends_with(";obs"));
    }
}
