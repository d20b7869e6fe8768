//! The paths of the admin API: one list for the broker, which reads them, and its clients, which write them.

use std::fmt::{self, Write};

/// A resource of the admin API, `/v1/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET`: what the broker is and where it listens.
    Status,
    /// `GET`, `POST`: people's accounts.
    Users,
    /// `DELETE`: one account, by bare JID.
    User(String),
    /// `PUT`: an account's password.
    UserPassword(String),
    /// `GET`, `POST`: devices.
    Devices,
    /// `GET`, `DELETE`: one device, by id.
    Device(String),
    /// `GET`, `POST`: grants.
    Grants,
    /// `DELETE`: one grant, by the id that the broker gave it.
    Grant(String),
    /// `GET`: MQTT sessions.
    Sessions,
    /// `GET`, `DELETE`: one MQTT session, by bare JID and client id.
    Session(String, String),
}

impl Route {
    /// Reads a request's path, without its query. `None` for a path that is not one of these.
    pub fn parse(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix("/v1/")?.split('/');
        let head = segments.next()?;
        let rest = segments.map(decode).collect::<Option<Vec<_>>>()?;
        match (head, <[String; 1]>::try_from(rest)) {
            ("users", Ok([jid])) => Some(Self::User(jid)),
            ("devices", Ok([id])) => Some(Self::Device(id)),
            ("grants", Ok([id])) => Some(Self::Grant(id)),
            (head, Err(rest)) => Self::parse_others(head, rest),
            _ => None,
        }
    }

    fn parse_others(head: &str, mut rest: Vec<String>) -> Option<Self> {
        match (head, rest.len()) {
            ("status", 0) => Some(Self::Status),
            ("users", 0) => Some(Self::Users),
            ("devices", 0) => Some(Self::Devices),
            ("grants", 0) => Some(Self::Grants),
            ("sessions", 0) => Some(Self::Sessions),
            ("sessions", 2) => {
                let client = rest.pop()?;
                Some(Self::Session(rest.pop()?, client))
            }
            ("users", 2) if rest[1] == "password" => Some(Self::UserPassword(rest.swap_remove(0))),
            _ => None,
        }
    }

    /// The methods that the resource has, as in an `Allow` header (RFC 9110 §10.2.1).
    pub fn methods(&self) -> &'static str {
        match self {
            Self::Status | Self::Sessions => "GET",
            Self::Users | Self::Devices | Self::Grants => "GET, POST",
            Self::UserPassword(_) => "PUT",
            Self::Device(_) | Self::Session(..) => "GET, DELETE",
            Self::User(_) | Self::Grant(_) => "DELETE",
        }
    }
}

impl fmt::Display for Route {
    /// The path as it stands in a request.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("/v1/status"),
            Self::Users => f.write_str("/v1/users"),
            Self::User(jid) => write!(f, "/v1/users/{}", Segment(jid)),
            Self::UserPassword(jid) => write!(f, "/v1/users/{}/password", Segment(jid)),
            Self::Devices => f.write_str("/v1/devices"),
            Self::Device(id) => write!(f, "/v1/devices/{}", Segment(id)),
            Self::Grants => f.write_str("/v1/grants"),
            Self::Grant(id) => write!(f, "/v1/grants/{}", Segment(id)),
            Self::Sessions => f.write_str("/v1/sessions"),
            Self::Session(subject, client) => write!(f, "/v1/sessions/{}/{}", Segment(subject), Segment(client)),
        }
    }
}

/// The most rows that one answer lists.
pub const MAX_ROWS: usize = 1_000;

/// Which part of a list is asked for, as the query of a `GET`: `?after=ITEM&limit=N&subject=SUBJECT`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Only rows behind this one, as `next` of the answer before named it.
    pub after: Option<String>,
    /// At most so many rows; [`MAX_ROWS`] if it is not said.
    pub limit: Option<usize>,
    /// Of grants and sessions: only those of this subject, which the broker normalises.
    pub subject: Option<String>,
}

impl ListQuery {
    /// Reads a request's query. `None` if a part of it is not known or has no legal value.
    pub fn parse(query: Option<&str>) -> Option<Self> {
        let mut list = Self::default();
        for part in query.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=')?;
            let value = decode(value)?;
            match name {
                "after" => list.after = Some(value),
                "limit" => list.limit = Some(value.parse().ok().filter(|limit| *limit > 0)?),
                "subject" => list.subject = Some(value),
                _ => return None,
            }
        }
        Some(list)
    }

    /// How many rows the answer may have.
    pub fn rows(&self) -> usize {
        self.limit.unwrap_or(MAX_ROWS).min(MAX_ROWS)
    }
}

impl fmt::Display for ListQuery {
    /// As it stands behind a path, with its `?`; nothing where nothing is asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit.map(|limit| limit.to_string());
        let parts = [("after", &self.after), ("limit", &limit), ("subject", &self.subject)];
        let mut before = '?';
        for (name, value) in parts.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))) {
            write!(f, "{before}{name}={}", Segment(value))?;
            before = '&';
        }
        Ok(())
    }
}

/// One path segment: all but RFC 3986 §2.3's unreserved characters percent-encoded. `.` is encoded too, so that no
/// id reads as a dot segment (§5.2.4).
struct Segment<'a>(&'a str);

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| match byte {
            b'-' | b'_' | b'~' => f.write_char(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => f.write_char(char::from(byte)),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

/// RFC 3986 §2.1. `None` for an empty segment, a broken escape, or bytes that are not UTF-8.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

fn hex(digit: u8) -> Option<u8> {
    // A hexadecimal digit is below 16.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_those_of_the_design() {
        let jid = String::from("zoë/x@localhost");
        assert_eq!(Route::UserPassword(jid).to_string(), "/v1/users/zo%C3%AB%2Fx%40localhost/password");
        assert_eq!(Route::parse("/v1/users/ann@localhost"), Some(Route::User("ann@localhost".into())));
        assert_eq!(Route::parse("/v1/status"), Some(Route::Status));
    }

    #[test]
    fn other_paths_are_none() {
        let others = ["/v1/", "/v1", "/", "", "/v2/users", "/v1/users/", "/v1/users/a/b", "/v1/users/a/password/c"];
        for path in others.into_iter().chain(["/v1/status/x", "/v1/users/%4", "/v1/users/%ff", "/v1/nothing/x"]) {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }

    #[test]
    fn parts_of_lists_are_asked_for_in_a_query() {
        assert_eq!(ListQuery::parse(None), Some(ListQuery::default()));
        assert_eq!(ListQuery::default().to_string(), "");
        let query = ListQuery { after: Some("a&b=c".into()), limit: Some(7), subject: Some("@everyone".into()) };
        assert_eq!(query.to_string(), "?after=a%26b%3Dc&limit=7&subject=%40everyone");
        assert_eq!(ListQuery::parse(query.to_string().strip_prefix('?')), Some(query.clone()));
        assert_eq!((query.rows(), ListQuery::default().rows()), (7, MAX_ROWS));
        for refused in ["limit=0", "limit=x", "after=", "before=x", "after"] {
            assert_eq!(ListQuery::parse(Some(refused)), None, "{refused}");
        }
    }

    proptest! {
        #[test]
        fn routes_round_trip(id in "\\PC{1,30}|[%/.a]{1,8}", kind in 0..5) {
            let route = match kind {
                0 => Route::User(id),
                1 => Route::UserPassword(id),
                2 => Route::Device(id),
                3 => Route::Session("ann@localhost".into(), id),
                _ => Route::Grant(id),
            };
            prop_assert_eq!(Route::parse(&route.to_string()), Some(route));
        }

        #[test]
        fn any_path_is_read_or_refused(path in "/v1/(users|grants|sessions)/[a%0-9f/]{0,12}") {
            if let Some(route) = Route::parse(&path) {
                prop_assert_eq!(Route::parse(&route.to_string()), Some(route));
            }
        }
    }
}
