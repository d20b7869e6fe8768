//! Content-Format numbers and content types, by the IANA registry (RFC 7252 §12.3).

/// The registered pairs that Tavi's values use. The first type of a number is the one that it decodes to.
const FORMATS: &[(u16, &str)] = &[
    (0, "text/plain;charset=utf-8"),
    (0, "text/plain"),
    (16, "application/cose;cose-type=\"cose-encrypt0\""),
    (17, "application/cose;cose-type=\"cose-mac0\""),
    (18, "application/cose;cose-type=\"cose-sign1\""),
    (21, "image/gif"),
    (22, "image/jpeg"),
    (23, "image/png"),
    (40, "application/link-format"),
    (41, "application/xml"),
    (42, "application/octet-stream"),
    (47, "application/exi"),
    (50, "application/json"),
    (51, "application/json-patch+json"),
    (52, "application/merge-patch+json"),
    (60, "application/cbor"),
    (61, "application/cwt"),
    (62, "application/multipart-core"),
    (63, "application/cbor-seq"),
    (110, "application/senml+json"),
    (111, "application/sensml+json"),
    (112, "application/senml+cbor"),
    (113, "application/sensml+cbor"),
    (114, "application/senml-exi"),
    (115, "application/sensml-exi"),
    (310, "application/senml+xml"),
    (311, "application/sensml+xml"),
    (320, "application/senml-etch+json"),
    (322, "application/senml-etch+cbor"),
    (432, "application/td+json"),
    (10000, "application/vnd.ocf+cbor"),
    (11542, "application/vnd.oma.lwm2m+tlv"),
    (11543, "application/vnd.oma.lwm2m+json"),
    (11544, "application/vnd.oma.lwm2m+cbor"),
    (20000, "text/css"),
    (30000, "image/svg+xml"),
];

/// The number of application/link-format (RFC 6690 §7.1).
pub const LINK_FORMAT: u16 = 40;

/// The content type of a Content-Format number; `None` when Tavi does not know it (4.15 for a request).
pub fn content_type(number: u16) -> Option<&'static str> {
    FORMATS.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

/// The Content-Format number of a content type; `None` means that the option is left out.
///
/// Case and blanks do not count (RFC 9110 §8.3.1).
pub fn number(content_type: &str) -> Option<u16> {
    FORMATS.iter().find(|(_, name)| same(name, content_type)).map(|(number, _)| *number)
}

fn same(known: &str, given: &str) -> bool {
    let given = given.bytes().filter(|byte| !byte.is_ascii_whitespace());
    given.map(|byte| byte.to_ascii_lowercase()).eq(known.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_map_both_ways() {
        for (known, name) in FORMATS {
            assert_eq!(number(name), Some(*known));
            assert_eq!(number(content_type(*known).unwrap()), Some(*known));
        }
        assert_eq!(number("Text/Plain; charset=UTF-8"), Some(0));
        assert_eq!(content_type(0), Some("text/plain;charset=utf-8"));
        assert_eq!(number("application/x-unheard-of"), None);
        assert_eq!(number("text/plain;charset=latin1"), None);
        assert_eq!(content_type(9), None);
    }
}
