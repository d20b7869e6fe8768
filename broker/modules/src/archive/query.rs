//! What a query asks for (XEP-0313 §4, XEP-0059 §2), as it was sent: ids are still texts.

use super::when;
use crate::{form, paging};
use tavi_core::hooks::IqPayload;
use tavi_xmpp_proto::{Condition, Element, Jid, StanzaError, ns};

/// Messages in one page, if the client does not want fewer or more.
pub(super) const PAGE: usize = 50;
/// The most messages in one page.
const MAX_PAGE: usize = 250;
/// The most ids that one query names.
pub(super) const MAX_IDS: usize = 250;
/// The longest name that a client may give its query, in bytes: it comes back with each message.
const MAX_QUERY_ID: usize = 1_024;

/// `<query/>` of XEP-0313 §4.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// The name that the client gave it.
    pub id: Option<String>,
    pub filter: Filter,
    pub page: Page,
    /// XEP-0313 §4.3.4: the newest message of the page first.
    pub flip: bool,
}

/// The form of XEP-0313 §4.1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub with: Option<Jid>,
    /// From this millisecond on.
    pub start: Option<u64>,
    /// Up to this millisecond.
    pub end: Option<u64>,
    pub after: Option<String>,
    pub before: Option<String>,
    pub ids: Option<Vec<String>>,
}

/// The `<set/>` of XEP-0059 §2.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub max: usize,
    pub after: Option<String>,
    /// `Some(None)`: the last page (XEP-0059 §2.5).
    pub before: Option<Option<String>>,
}

impl Default for Page {
    fn default() -> Page {
        Page { max: PAGE, after: None, before: None }
    }
}

impl IqPayload for Query {
    const NS: &'static str = ns::MAM;
    const NAME: &'static str = "query";

    fn parse(query: &Element) -> Result<Query, StanzaError> {
        // XEP-0313 §5.1.3: nodes are for the archives of topics.
        if query.get_attr("node").is_some() {
            return Err(Condition::ItemNotFound.into());
        }
        let id = query.get_attr("queryid").map(str::to_owned);
        if id.as_ref().is_some_and(|id| id.len() > MAX_QUERY_ID) {
            return Err(bad("the queryid is too long"));
        }
        let filter = form::of(query).map_or(Ok(Filter::default()), Filter::read)?;
        let page = query.get_child(ns::RSM, "set").map_or(Ok(Page::default()), Page::read)?;
        Ok(Query { id, filter, page, flip: query.get_child(ns::MAM, "flip-page").is_some() })
    }
}

impl Filter {
    fn read(form: &Element) -> Result<Filter, StanzaError> {
        let mut filter = Filter::default();
        let mut form_type = None;
        for field in form::fields(form) {
            let values: Vec<String> = form::values(field).iter().map(|value| value.trim().to_owned()).collect();
            // XEP-0004 §3.3: a field without a value, or with an empty one, was not filled in.
            let first = values.first().filter(|value| !value.is_empty()).cloned();
            match field.get_attr("var") {
                Some(form::FORM_TYPE) => form_type = first,
                Some("with") => {
                    filter.with = first.map(|jid| Jid::parse(&jid)).transpose().map_err(|_| Condition::JidMalformed)?
                }
                Some("start") => filter.start = first.map(|text| moment(&text, Edge::Start)).transpose()?,
                Some("end") => filter.end = first.map(|text| moment(&text, Edge::End)).transpose()?,
                Some("after-id") => filter.after = first,
                Some("before-id") => filter.before = first,
                Some("ids") => filter.ids = Some(values),
                // There are no messages of rooms here, whether they are asked for or not.
                Some("include-groupchat") if matches!(first.as_deref(), None | Some("true" | "false" | "0" | "1")) => {}
                Some("include-groupchat") | None => return Err(bad("the form has a field that cannot be read")),
                // XEP-0313 §4.1.5.
                Some(_) => return Err(Condition::FeatureNotImplemented.into()),
            }
        }
        if form_type.as_deref() != Some(ns::MAM) {
            return Err(bad("the form's type has to be urn:xmpp:mam:2"));
        }
        if filter.ids.as_ref().is_some_and(|ids| ids.len() > MAX_IDS) {
            return Err(StanzaError::new(Condition::ResourceConstraint).text(format!("at most {MAX_IDS} ids")));
        }
        Ok(filter)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edge {
    Start,
    End,
}

/// XEP-0313 §4.1.2. What lies between two milliseconds begins with the second of them, and ends with the first.
fn moment(text: &str, edge: Edge) -> Result<u64, StanzaError> {
    let moment = when::parse(text).ok_or_else(|| bad("a time has the form 2026-11-25T12:00:00Z"))?;
    Ok(moment.ms + u64::from(moment.behind && edge == Edge::Start))
}

impl Page {
    fn read(set: &Element) -> Result<Page, StanzaError> {
        let paging::Asked { max, after, before } = paging::Asked::read(set)?;
        let text = |id: String| Some(id.trim().to_owned()).filter(|id| !id.is_empty());
        let max = max.map_or(PAGE, |max| max.min(MAX_PAGE));
        Ok(Page { max, after: after.and_then(text), before: before.map(text) })
    }
}

fn bad(text: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).text(text)
}

/// XEP-0313 §4.1.5: the fields of a query.
pub(super) fn query_form() -> Element {
    let field = |type_: &'static str, var: &'static str| form::field(var, Some(type_), []);
    // XEP-0122 §3.2.2: any id will do.
    const VALIDATE: &str = "http://jabber.org/protocol/xdata-validate";
    let open = Element::new(VALIDATE, "validate").attr("datatype", "xs:string").child(Element::new(VALIDATE, "open"));
    let fields = [
        field("jid-single", "with"),
        field("text-single", "start"),
        field("text-single", "end"),
        field("text-single", "before-id"),
        field("text-single", "after-id"),
        field("list-multi", "ids").child(open),
        field("boolean", "include-groupchat"),
    ];
    Element::new(ns::MAM, "query").child(form::form("form", ns::MAM, fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inside: &str) -> Result<Query, StanzaError> {
        let xml = format!("<query xmlns='urn:xmpp:mam:2' queryid='q'>{inside}</query>");
        Query::parse(&Element::parse(xml.as_bytes(), ns::CLIENT).unwrap())
    }

    fn form(fields: &str) -> String {
        format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field>{fields}</x>"
        )
    }

    fn field(var: &str, value: &str) -> String {
        form(&format!("<field var='{var}'><value>{value}</value></field>"))
    }

    #[test]
    fn all_that_may_be_asked_for_is_read() {
        assert_eq!(parse(""), Ok(Query { id: Some("q".into()), ..Query::default() }));
        let fields = "<field var='with'><value>Romeo@Montague.lit/a</value></field>
             <field var='start'><value>1970-01-01T00:00:01.0001Z</value></field>
             <field var='end'><value>1970-01-01T00:00:02.9999Z</value></field>
             <field var='before-id'><value>b</value></field><field var='after-id'><value>a</value></field>
             <field var='ids'><value>1</value><value>2</value></field>
             <field var='include-groupchat'><value>true</value></field>";
        let set = "<set xmlns='http://jabber.org/protocol/rsm'><max>10</max><before/></set><flip-page/>";
        let query = parse(&format!("{}{set}", form(fields))).unwrap();
        let filter = Filter {
            with: Some(Jid::parse("romeo@montague.lit/a").unwrap()),
            start: Some(1_001),
            end: Some(2_999),
            after: Some("a".into()),
            before: Some("b".into()),
            ids: Some(vec!["1".into(), "2".into()]),
        };
        assert_eq!(query.filter, filter);
        assert_eq!((query.page, query.flip), (Page { max: 10, after: None, before: Some(None) }, true));
        let page = |set: &str| parse(&format!("<set xmlns='http://jabber.org/protocol/rsm'>{set}</set>")).unwrap().page;
        assert_eq!(page("<after>x</after>"), Page { after: Some("x".into()), ..Page::default() });
        assert_eq!(page("<before>x</before>"), Page { before: Some(Some("x".into())), ..Page::default() });
        assert_eq!(page("<max>4000000000</max>").max, MAX_PAGE);
        assert_eq!(page("<max>0</max>").max, 0);
        assert_eq!(parse(&form("<field var='start'/>")).unwrap().filter, Filter::default());
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        let set = |set: &str| format!("<set xmlns='http://jabber.org/protocol/rsm'>{set}</set>");
        let cases = [
            (form("<field var='{urn:x}y'><value>1</value></field>"), Condition::FeatureNotImplemented),
            (field("start", "yesterday"), Condition::BadRequest),
            (field("with", "@"), Condition::JidMalformed),
            (field("include-groupchat", "perhaps"), Condition::BadRequest),
            (form("<field><value>1</value></field>"), Condition::BadRequest),
            ("<x xmlns='jabber:x:data' type='submit'/>".into(), Condition::BadRequest),
            (set("<max>-1</max>"), Condition::BadRequest),
            (set("<index>3</index>"), Condition::FeatureNotImplemented),
            (
                form(&format!("<field var='ids'>{}</field>", "<value>1</value>".repeat(251))),
                Condition::ResourceConstraint,
            ),
        ];
        for (inside, condition) in cases {
            assert_eq!(parse(&inside).unwrap_err().condition, condition, "{inside}");
        }
    }
}
