//! Personal nodes as dialogues.

use super::*;
use crate::tests::world::{Person, World};
use tavi_xmpp_proto::ns;

const TUNE: &str = "http://jabber.org/protocol/tune";
const BOOKMARKS_NODE: &str = "urn:xmpp:bookmarks:1";

fn info(nodes: &[&str]) -> String {
    let notify = nodes.iter().map(|node| format!("<feature var='{node}+notify'/>")).collect::<String>();
    format!("<identity category='client' type='pc' name='Test'/><feature var='{}'/>{notify}", ns::CAPS)
}

fn ver(nodes: &[&str]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use sha1::{Digest, Sha1};
    let mut words: Vec<String> = nodes.iter().map(|node| format!("{node}+notify<")).collect();
    words.push(format!("{}<", ns::CAPS));
    words.sort();
    STANDARD.encode(Sha1::digest(format!("client/pc//Test<{}", words.concat())))
}

fn presence(nodes: &[&str]) -> String {
    format!("<presence><c xmlns='{}' hash='sha-1' node='urn:test' ver='{}'/></presence>", ns::CAPS, ver(nodes))
}

fn iq(type_: &str, to: &str, inner: &str) -> String {
    let to = if to.is_empty() { String::new() } else { format!(" to='{to}'") };
    format!("<iq type='{type_}'{to} id='q'>{inner}</iq>")
}

fn pubsub(inner: &str) -> String {
    format!("<pubsub xmlns='{}'>{inner}</pubsub>", ns::PUBSUB)
}

fn owner(inner: &str) -> String {
    format!("<pubsub xmlns='{}'>{inner}</pubsub>", ns::PUBSUB_OWNER)
}

fn publish(node: &str, id: &str, options: &[(&str, &str)]) -> String {
    let fields: String = options
        .iter()
        .map(|(var, value)| format!("<field var='pubsub#{var}'><value>{value}</value></field>"))
        .collect();
    let form = format!(
        "<publish-options><x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'>
         <value>http://jabber.org/protocol/pubsub#publish-options</value></field>{fields}</x></publish-options>"
    );
    let form = if options.is_empty() { String::new() } else { form };
    let item = format!("<item id='{id}'><v xmlns='urn:v'>{id}</v></item>");
    iq("set", "", &pubsub(&format!("<publish node='{node}'>{item}</publish>{form}")))
}

/// The event of an item from somebody.
fn event(from: &str, node: &str, id: &str) -> String {
    format!(
        "<message from='{from}@localhost' type='headline'><event xmlns='{}'><items node='{node}'><item id='{id}'>
         <v xmlns='urn:v'>{id}</v></item></items></event></message>",
        ns::PUBSUB_EVENT
    )
}

fn retraction(from: &str, node: &str, id: &str) -> String {
    format!(
        "<message from='{from}@localhost' type='headline'><event xmlns='{}'><items node='{node}'>
         <retract id='{id}'/></items></event></message>",
        ns::PUBSUB_EVENT
    )
}

fn items(to: &str, node: &str, more: &str) -> String {
    iq("get", to, &pubsub(&format!("<items node='{node}'/>{more}")))
}

impl Person {
    /// Sends a request that is granted; gives the answer.
    async fn asks(&mut self, xml: &str) -> String {
        self.sends(xml).await;
        self.skips_presence();
        self.sees("<iq type='result' id='q'/>")
    }

    async fn is_refused(&mut self, xml: &str, condition: &str, specific: &str) {
        self.sends(xml).await;
        self.skips_presence();
        let seen = self.sees_error(condition);
        assert!(seen.contains(specific), "{seen}");
    }

    /// Sends presence with these wishes, and answers what they are if that is not known.
    async fn wants(&mut self, nodes: &[&str]) {
        self.sends(&presence(nodes)).await;
        if self.is_asked() {
            self.answers(nodes).await;
        }
        self.skip();
    }

    fn is_asked(&mut self) -> bool {
        self.unread().iter().any(|xml| xml.contains("id='caps-"))
    }

    async fn answers(&mut self, nodes: &[&str]) {
        let question = self
            .unread()
            .into_iter()
            .find(|xml| xml.contains("id='caps-"))
            .unwrap_or_else(|| panic!("{} is not asked", self.jid()));
        let id = question.split("id='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let bare = self.jid().to_bare();
        let query = format!("<query xmlns='{}'>{}</query>", ns::DISCO_INFO, info(nodes));
        self.skip();
        self.sends(&format!("<iq type='result' to='{bare}' id='{id}'>{query}</iq>")).await;
    }
}

/// The ids of the items in an answer, in order.
fn ids(answer: &str) -> Vec<String> {
    answer.split("<item id='").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_avatar_is_published_and_contacts_who_want_it_are_told() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut deaf = world.online("juliet/deaf").await;
    [&mut romeo, &mut juliet].into_iter().for_each(Person::skip);
    juliet.wants(&["urn:xmpp:avatar:metadata"]).await;
    [&mut romeo, &mut deaf].into_iter().for_each(Person::skip);
    romeo.asks(&publish("urn:xmpp:avatar:data", "111", &[])).await;
    juliet.sees_nothing();
    romeo.asks(&publish("urn:xmpp:avatar:metadata", "111", &[])).await;
    let seen = juliet.sees(&event("romeo", "urn:xmpp:avatar:metadata", "111"));
    assert!(!seen.contains("tavi") && seen.contains("to='juliet@localhost/balcony'"), "{seen}");
    deaf.sees_nothing();
    romeo.sees_nothing();
    let data = juliet.asks(&items("romeo@localhost", "urn:xmpp:avatar:data", "")).await;
    assert_eq!(ids(&data), ["111"]);
    assert!(data.contains("<v xmlns='urn:v'>111</v>"), "{data}");
    // One item by default: the next takes its place.
    romeo.asks(&publish("urn:xmpp:avatar:metadata", "222", &[])).await;
    juliet.sees(&event("romeo", "urn:xmpp:avatar:metadata", "222"));
    assert_eq!(ids(&juliet.asks(&items("romeo@localhost", "urn:xmpp:avatar:metadata", "")).await), ["222"]);
    juliet.sees_nothing();
}

#[tokio::test]
async fn bookmarks_are_their_owner_s_alone_and_all_own_sessions_hear_of_them() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.wants(&[BOOKMARKS_NODE]).await;
    let mut phone = world.bind("romeo/phone").await;
    phone.wants(&[BOOKMARKS_NODE]).await;
    [&mut romeo, &mut juliet, &mut phone].into_iter().for_each(Person::skip);
    let options = [
        ("persist_items", "true"),
        ("max_items", "max"),
        ("send_last_published_item", "never"),
        ("access_model", "whitelist"),
    ];
    for room in ["a@rooms.localhost", "b@rooms.localhost", "c@rooms.localhost"] {
        romeo.asks(&publish(BOOKMARKS_NODE, room, &options)).await;
        phone.sees(&event("romeo", BOOKMARKS_NODE, room));
    }
    let all = romeo.asks(&items("", BOOKMARKS_NODE, "")).await;
    assert_eq!(ids(&all), ["c@rooms.localhost", "b@rooms.localhost", "a@rooms.localhost"]);
    let one = "<retract node='urn:xmpp:bookmarks:1' notify='true'><item id='b@rooms.localhost'/></retract>";
    romeo.asks(&iq("set", "", &pubsub(one))).await;
    phone.sees(&retraction("romeo", BOOKMARKS_NODE, "b@rooms.localhost"));
    romeo.is_refused(&iq("set", "", &pubsub(one)), "item-not-found", "").await;
    juliet.is_refused(&items("romeo@localhost", BOOKMARKS_NODE, ""), "not-allowed", "closed-node").await;
    [&mut romeo, &mut juliet, &mut phone].into_iter().for_each(Person::sees_nothing);

    let world = world.restart().await;
    let mut romeo = world.online("romeo/orchard").await;
    let all = romeo.asks(&items("romeo@localhost", BOOKMARKS_NODE, "")).await;
    assert_eq!(ids(&all), ["c@rooms.localhost", "a@rooms.localhost"]);
    romeo
        .is_refused(&publish(BOOKMARKS_NODE, "d", &[("access_model", "open")]), "conflict", "precondition-not-met")
        .await;
    romeo.asks(&publish(BOOKMARKS_NODE, "d", &options)).await;
    let ours = romeo.asks(&iq("get", "", &owner("<configure node='urn:xmpp:bookmarks:1'/>"))).await;
    assert!(ours.contains("<value>whitelist</value>") && ours.contains("<value>max</value>"), "{ours}");
}

#[tokio::test]
async fn who_comes_gets_the_last_items_that_it_wants_from_all_whom_it_sees() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    romeo.asks(&publish(TUNE, "old", &[])).await;
    romeo.asks(&publish(TUNE, "new", &[])).await;
    romeo.asks(&publish("urn:never", "1", &[("send_last_published_item", "never")])).await;
    juliet.asks(&publish(TUNE, "hers", &[])).await;
    juliet.sends("<presence type='unavailable'/>").await;
    juliet.skip();
    juliet.sends(&presence(&[TUNE, "urn:never"])).await;
    juliet.answers(&[TUNE, "urn:never"]).await;
    let own = juliet.sees(&event("juliet", TUNE, "hers"));
    assert!(own.contains("<delay"), "{own}");
    let seen = juliet.sees(&event("romeo", TUNE, "new"));
    assert!(
        seen.contains("<delay") && seen.contains("to='juliet@localhost/balcony'") && !seen.contains("tavi"),
        "{seen}"
    );
    juliet.sees_nothing();
    // The hash is known by now: whoever else gives it is not asked.
    let mut phone = world.bind("juliet/phone").await;
    phone.sends(&presence(&[TUNE, "urn:never"])).await;
    let seen = phone.unread().concat();
    assert!(!seen.contains("caps-") && seen.contains("'hers'") && seen.contains("'new'"), "{seen}");
    // Later presence brings nothing again.
    phone.skip();
    phone.sends(&presence(&[TUNE, "urn:never"]).replace("<c ", "<show>away</show><c ")).await;
    assert!(!phone.unread().concat().contains("<event"));
    // Only what is wanted for the first time comes.
    phone.skip();
    juliet.skip();
    romeo.asks(&publish("urn:more", "m", &[])).await;
    phone.sends(&presence(&["urn:more", TUNE])).await;
    phone.answers(&["urn:more", TUNE]).await;
    let seen = phone.unread().concat();
    assert!(seen.contains("'m'"), "{seen}");
}

#[tokio::test]
async fn who_is_let_in_gets_the_last_items() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.bind("juliet/balcony").await;
    juliet.wants(&[TUNE]).await;
    romeo.asks(&publish(TUNE, "song", &[])).await;
    juliet.is_refused(&items("romeo@localhost", TUNE, ""), "not-authorized", "presence-subscription-required").await;
    juliet.sends("<presence to='romeo@localhost' type='subscribe'/>").await;
    juliet.skip();
    romeo.sends("<presence to='juliet@localhost' type='subscribed'/>").await;
    let seen = juliet.unread().concat();
    assert!(seen.contains("'song'") && seen.contains("<delay"), "{seen}");
    juliet.skip();
    romeo.sends("<presence to='juliet@localhost' type='unsubscribed'/>").await;
    juliet.skip();
    romeo.skip();
    romeo.asks(&publish(TUNE, "secret", &[])).await;
    juliet.sees_nothing();
}

#[tokio::test]
async fn an_answer_that_proves_nothing_counts_for_its_session_alone() {
    let world = World::new().await;
    let mut liar = world.bind("romeo/liar").await;
    liar.sends(&presence(&[TUNE])).await;
    liar.answers(&["urn:other"]).await;
    let mut honest = world.bind("romeo/honest").await;
    honest.wants(&[TUNE]).await;
    [&mut liar, &mut honest].into_iter().for_each(Person::skip);
    honest.asks(&publish("urn:other", "1", &[])).await;
    liar.sees(&event("romeo", "urn:other", "1"));
    liar.asks(&publish(TUNE, "2", &[])).await;
    honest.sees(&event("romeo", TUNE, "2"));
    [&mut liar, &mut honest].into_iter().for_each(Person::sees_nothing);
    // An answer that nobody asked for, or from somebody else, is none.
    let forged = format!(
        "<iq type='result' to='romeo@localhost' id='caps-1'><query xmlns='{}'>{}</query></iq>",
        ns::DISCO_INFO,
        info(&["urn:third"])
    );
    honest.sends(&forged).await;
    honest.asks(&publish("urn:third", "3", &[])).await;
    [&mut liar, &mut honest].into_iter().for_each(Person::sees_nothing);
}

#[tokio::test]
async fn nobody_else_writes_or_configures() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.asks(&publish(TUNE, "1", &[])).await;
    let requests = [
        pubsub("<publish node='n'><item><v xmlns='urn:v'/></item></publish>"),
        pubsub("<retract node='http://jabber.org/protocol/tune'><item id='1'/></retract>"),
        pubsub("<create node='n'/>"),
        owner("<delete node='http://jabber.org/protocol/tune'/>"),
        owner("<purge node='http://jabber.org/protocol/tune'/>"),
        owner("<configure node='n'><x xmlns='jabber:x:data' type='submit'/></configure>"),
    ];
    for request in &requests {
        romeo.is_refused(&iq("set", "juliet@localhost", request), "forbidden", "").await;
    }
    for request in ["<configure node='n'/>", "<subscriptions node='n'/>", "<affiliations node='n'/>", "<default/>"] {
        romeo.is_refused(&iq("get", "juliet@localhost", &owner(request)), "forbidden", "").await;
    }
    romeo.is_refused(&items("nobody@localhost", TUNE, ""), "service-unavailable", "").await;
    assert_eq!(ids(&romeo.asks(&items("juliet@localhost", TUNE, "")).await), ["1"]);
}

#[tokio::test]
async fn what_is_not_well_asked_is_refused_with_the_error_of_the_standard() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let v = "<v xmlns='urn:v'/>";
    let form = |var: &str, value: &str| {
        format!("<x xmlns='jabber:x:data' type='submit'><field var='{var}'><value>{value}</value></field></x>")
    };
    romeo.asks(&iq("set", "", &pubsub("<create node='there'/>"))).await;
    let long = "n".repeat(1024);
    let sets = [
        (pubsub(""), "bad-request", ""),
        (pubsub("<unheard/>"), "bad-request", ""),
        (pubsub(&format!("<publish><item>{v}</item></publish>")), "bad-request", "nodeid-required"),
        (pubsub("<publish node='n'/>"), "bad-request", "item-required"),
        (pubsub("<publish node='n'><item/></publish>"), "bad-request", "payload-required"),
        (pubsub(&format!("<publish node='n'><item>{v}{v}</item></publish>")), "bad-request", "invalid-payload"),
        (pubsub(&format!("<publish node='{long}'><item>{v}</item></publish>")), "bad-request", ""),
        (pubsub(&format!("<publish node='n'><item id='{long}'>{v}</item></publish>")), "bad-request", ""),
        (pubsub("<create/>"), "not-acceptable", "nodeid-required"),
        (pubsub("<create node='there'/>"), "conflict", ""),
        (
            pubsub(&format!("<create node='m'/><configure>{}</configure>", form("pubsub#max_items", "0"))),
            "not-acceptable",
            "",
        ),
        (pubsub("<retract node='there'/>"), "bad-request", "item-required"),
        (pubsub("<retract node='none'><item id='1'/></retract>"), "item-not-found", ""),
        (pubsub("<subscribe node='there'/>"), "bad-request", "jid-required"),
        (pubsub("<subscribe node='there' jid='juliet@localhost'/>"), "bad-request", "invalid-jid"),
        (pubsub("<subscribe node='none' jid='romeo@localhost'/>"), "item-not-found", ""),
        (pubsub("<unsubscribe node='there' jid='romeo@localhost'/>"), "unexpected-request", "not-subscribed"),
        (owner("<delete node='none'/>"), "item-not-found", ""),
        (owner("<purge node='none'/>"), "item-not-found", ""),
        (owner(&format!("<configure node='there'>{}</configure>", form("pubsub#unheard", "1"))), "not-acceptable", ""),
        (owner(&format!("<configure node='none'>{}</configure>", form("pubsub#title", "1"))), "item-not-found", ""),
        (owner("<affiliations node='there'/>"), "feature-not-implemented", "modify-affiliations"),
        (owner("<subscriptions node='there'/>"), "feature-not-implemented", "manage-subscriptions"),
    ];
    for (request, condition, specific) in &sets {
        romeo.is_refused(&iq("set", "", request), condition, specific).await;
    }
    romeo.is_refused(&publish("new", "1", &[("unheard", "1")]), "conflict", "precondition-not-met").await;
    romeo.is_refused(&items("", "new", ""), "item-not-found", "").await;
    assert_eq!(ids(&romeo.asks(&items("", "there", "")).await), [""; 0]);
}

#[tokio::test]
async fn items_are_found_by_id_by_number_and_page_by_page() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    for n in 0..10 {
        romeo.asks(&publish("n", &n.to_string(), &[("max_items", "8")])).await;
    }
    romeo.asks(&publish("n", "5", &[])).await;
    assert_eq!(ids(&romeo.asks(&items("", "n", "")).await), ["5", "9", "8", "7", "6", "4", "3", "2"]);
    let some = "<items node='n'><item id='3'/><item id='none'/><item id='9'/></items>";
    assert_eq!(ids(&romeo.asks(&iq("get", "", &pubsub(some))).await), ["9", "3"]);
    assert_eq!(ids(&romeo.asks(&iq("get", "", &pubsub("<items node='n' max_items='2'/>"))).await), ["5", "9"]);
    let page = |inner: &str| items("", "n", &format!("<set xmlns='http://jabber.org/protocol/rsm'>{inner}</set>"));
    let first = romeo.asks(&page("<max>3</max>")).await;
    assert_eq!(ids(&first), ["5", "9", "8"]);
    assert!(first.contains("<first>5</first><last>8</last><count>8</count>"), "{first}");
    assert_eq!(ids(&romeo.asks(&page("<max>3</max><after>8</after>")).await), ["7", "6", "4"]);
    assert_eq!(ids(&romeo.asks(&page("<max>3</max><before/>")).await), ["4", "3", "2"]);
    assert_eq!(ids(&romeo.asks(&page("<max>3</max><before>4</before>")).await), ["8", "7", "6"]);
    let none = romeo.asks(&page("<max>0</max>")).await;
    assert!(ids(&none).is_empty() && none.contains("<count>8</count>"), "{none}");
    romeo.is_refused(&page("<after>none</after>"), "item-not-found", "").await;
}

#[tokio::test]
async fn a_node_is_created_configured_purged_and_deleted_and_contacts_hear_of_it() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.wants(&["n"]).await;
    romeo.skip();
    let form = |var: &str, value: &str| {
        format!(
            "<configure node='n'><x xmlns='jabber:x:data' type='submit'><field var='pubsub#{var}'>
             <value>{value}</value></field></x></configure>"
        )
    };
    let create = format!("<create node='n'/>{}", form("max_items", "3").replace(" node='n'", ""));
    romeo.asks(&iq("set", "", &pubsub(&create))).await;
    for n in ["1", "2", "3", "4"] {
        romeo.asks(&publish("n", n, &[])).await;
        juliet.sees(&event("romeo", "n", n));
    }
    romeo.asks(&iq("set", "", &owner(&form("max_items", "2")))).await;
    assert_eq!(ids(&romeo.asks(&items("", "n", "")).await), ["4", "3"]);
    romeo.asks(&iq("set", "", &owner(&form("deliver_payloads", "0")))).await;
    romeo.asks(&publish("n", "5", &[])).await;
    let seen = juliet.sees("<message><event xmlns='http://jabber.org/protocol/pubsub#event'/></message>");
    assert!(seen.contains("<item id='5'/>"), "{seen}");
    romeo.asks(&iq("set", "", &owner("<purge node='n'/>"))).await;
    juliet.sees("<message><event xmlns='http://jabber.org/protocol/pubsub#event'><purge node='n'/></event></message>");
    assert!(ids(&romeo.asks(&items("", "n", "")).await).is_empty());
    romeo.asks(&iq("set", "", &owner("<delete node='n'/>"))).await;
    juliet.sees("<message><event xmlns='http://jabber.org/protocol/pubsub#event'><delete node='n'/></event></message>");
    romeo.is_refused(&items("", "n", ""), "item-not-found", "").await;
    romeo.asks(&publish("n", "6", &[("persist_items", "false")])).await;
    juliet.sees(&event("romeo", "n", "6"));
    assert!(ids(&romeo.asks(&items("", "n", "")).await).is_empty(), "what is not kept is only told");
}

#[tokio::test]
async fn roster_groups_and_open_nodes_are_seen_by_those_whom_they_are_for() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut paris = world.online("paris/street").await;
    juliet.wants(&["group"]).await;
    romeo.skip();
    let group = [("access_model", "roster"), ("roster_groups_allowed", "Loves")];
    romeo.asks(&publish("group", "1", &group)).await;
    juliet.sees_nothing();
    juliet.is_refused(&items("romeo@localhost", "group", ""), "not-authorized", "not-in-roster-group").await;
    let loves = "<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='juliet@localhost'>
         <group>Loves</group></item></query></iq>";
    romeo.sends(loves).await;
    romeo.skip();
    romeo.asks(&publish("group", "2", &group)).await;
    juliet.sees(&event("romeo", "group", "2"));
    paris.is_refused(&items("romeo@localhost", "group", ""), "not-authorized", "not-in-roster-group").await;

    romeo.asks(&publish("blog", "1", &[("access_model", "open")])).await;
    assert_eq!(ids(&paris.asks(&items("romeo@localhost", "blog", "")).await), ["1"]);
    let subscribe = "<subscribe node='blog' jid='paris@localhost'/>";
    paris.sends(&iq("set", "romeo@localhost", &pubsub(subscribe))).await;
    let seen = paris.sees(&event("romeo", "blog", "1"));
    assert!(seen.contains("<delay"), "{seen}");
    paris.sees(
        "<iq type='result' id='q'><pubsub xmlns='http://jabber.org/protocol/pubsub'>
         <subscription node='blog' jid='paris@localhost' subscription='subscribed'/></pubsub></iq>",
    );
    romeo.asks(&publish("blog", "2", &[])).await;
    paris.sees(&event("romeo", "blog", "2"));
    let mine = paris.asks(&iq("get", "romeo@localhost", &pubsub("<subscriptions/>"))).await;
    assert!(mine.contains("node='blog'"), "{mine}");
    let world = world.restart().await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut paris = world.online("paris/street").await;
    romeo.asks(&publish("blog", "3", &[])).await;
    paris.sees(&event("romeo", "blog", "3"));
    paris.asks(&iq("set", "romeo@localhost", &pubsub(&subscribe.replace("<sub", "<unsub")))).await;
    romeo.asks(&publish("blog", "4", &[])).await;
    paris.sees_nothing();
}

#[tokio::test]
async fn what_is_too_much_is_refused_and_changes_nothing() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let big = |node: &str, id: &str, bytes: usize| {
        let item = format!("<item id='{id}'><v xmlns='urn:v'>{}</v></item>", "x".repeat(bytes));
        iq("set", "", &pubsub(&format!("<publish node='{node}'>{item}</publish>")))
    };
    romeo.is_refused(&big("n", "1", MAX_ITEM_BYTES + 1), "not-acceptable", "payload-too-big").await;
    romeo.is_refused(&items("", "n", ""), "item-not-found", "").await;
    romeo.asks(&publish("n", "0", &[("max_items", "max")])).await;
    let size = MAX_ITEM_BYTES - 1_000;
    let fit = MAX_BYTES / (size + 300);
    for n in 0..fit {
        romeo.asks(&big("n", &n.to_string(), size)).await;
    }
    romeo.is_refused(&big("n", "one more", size), "resource-constraint", "").await;
    romeo.is_refused(&big("other", "one more", size), "resource-constraint", "").await;
    romeo.is_refused(&items("", "other", ""), "item-not-found", "").await;
    romeo.asks(&big("n", "0", size)).await;
    // An answer holds only so much; the rest is behind it.
    let part = romeo.asks(&items("", "n", "")).await;
    assert!(part.len() < 1 << 20 && part.contains(&format!("<count>{fit}</count>")), "{}", part.len());
    romeo.asks(&iq("set", "", &owner("<purge node='n'/>"))).await;
    romeo.asks(&big("n", "one more", size)).await;
    for n in 1..MAX_NODES {
        romeo.asks(&iq("set", "", &pubsub(&format!("<create node='n{n}'/>")))).await;
    }
    romeo.is_refused(&publish("too many", "1", &[]), "policy-violation", "max-nodes-exceeded").await;
}

#[tokio::test]
async fn nothing_is_told_or_answered_before_it_is_saved() {
    let (world, store) = World::delayed().await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.wants(&[TUNE]).await;
    store.release_all();
    let first = romeo.begins(&publish(TUNE, "1", &[])).await;
    let second = romeo.begins(&publish(TUNE, "2", &[])).await;
    romeo.sees_nothing();
    assert_eq!(store.waiting(), 2);
    let mut phone = world.bind("romeo/phone").await;
    let saves = async {
        // Whoever comes meanwhile waits for what was decided before.
        while store.waiting() < 3 {
            tokio::task::yield_now().await;
        }
        while store.release_all() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let comes = presence(&[TUNE]);
    tokio::join!(phone.sends(&comes), saves);
    assert!(phone.unread().concat().contains("<item id='2'><v"));
    romeo.sees_nothing();
    let (first, second) = tokio::join!(first.complete(), second.complete());
    assert!(first.is_ok() && second.is_ok());
    let seen = romeo.unread().concat();
    let at = |text: &str| seen.find(text).unwrap_or_else(|| panic!("{text} in {seen}"));
    assert!(at("<item id='1'><v") < at("<item id='2'><v"));
}

#[tokio::test]
async fn discovery_tells_of_nodes_to_those_who_may_see_them() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    let mut paris = world.online("paris/street").await;
    romeo.asks(&publish("mine", "1", &[("access_model", "whitelist")])).await;
    romeo.asks(&publish("friends", "1", &[("max_items", "2")])).await;
    romeo.asks(&publish("friends", "2", &[])).await;
    romeo.asks(&publish("all", "1", &[("access_model", "open")])).await;
    let query = |of: &str, node: &str| format!("<query xmlns='http://jabber.org/protocol/disco#{of}'{node}/>");
    let list = |of: &str, node: &str| iq("get", "romeo@localhost", &query(of, node));
    let nodes = |answer: String| {
        let names = answer.split(" node='").skip(1).map(|rest| rest.split('\'').next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(nodes(romeo.asks(&list("items", "")).await), ["all", "friends", "mine"]);
    assert_eq!(nodes(juliet.asks(&list("items", "")).await), ["all", "friends"]);
    let open = paris.asks(&list("items", "")).await;
    assert!(!open.contains("orchard"), "{open}");
    assert_eq!(nodes(open), ["all"]);
    let info = juliet.asks(&list("info", "")).await;
    for told in ["type='pep'", "pubsub#publish-options", "pubsub#filtered-notifications", "category='account'"] {
        assert!(info.contains(told), "{told} in {info}");
    }
    assert!(juliet.asks(&list("info", " node='friends'")).await.contains("type='leaf'"));
    juliet.is_refused(&list("info", " node='mine'"), "item-not-found", "").await;
    paris.is_refused(&list("info", " node='friends'"), "service-unavailable", "").await;
    let two = juliet.asks(&list("items", " node='friends'")).await;
    assert!(two.contains("name='2'") && two.contains("name='1'"), "{two}");
    let none = paris.asks(&list("items", " node='friends'")).await;
    assert!(!none.contains("<item"), "{none}");
}

#[tokio::test]
async fn whoever_is_blocked_hears_nothing_and_whoever_blocks_neither() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.wants(&[TUNE]).await;
    romeo.skip();
    let block = |verb: &str, who: &str| {
        iq("set", "", &format!("<{verb} xmlns='urn:xmpp:blocking'><item jid='{who}@localhost'/></{verb}>"))
    };
    for (blocks_first, whom) in [(true, "juliet"), (false, "romeo")] {
        let who = if blocks_first { &mut romeo } else { &mut juliet };
        who.asks(&block("block", whom)).await;
        juliet.skips_presence();
        romeo.asks(&publish(TUNE, "hidden", &[])).await;
        juliet.skips_presence();
        juliet.sees_nothing();
        let who = if blocks_first { &mut romeo } else { &mut juliet };
        who.asks(&block("unblock", whom)).await;
        romeo.asks(&publish(TUNE, "shown", &[])).await;
        juliet.skips_presence();
        juliet.sees(&event("romeo", TUNE, "shown"));
    }
}

#[tokio::test]
async fn a_removed_account_leaves_nothing_to_its_namesake() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.asks(&publish("n", "1", &[("access_model", "open")])).await;
    let jid = romeo.jid().to_bare();
    world.node.parts.accounts.remove(&jid).await.unwrap();
    world.node.parts.revoke(&jid);
    romeo.ends().await;
    let mut namesake = world.online("romeo/orchard").await;
    namesake.is_refused(&items("", "n", ""), "item-not-found", "").await;
}

#[tokio::test]
async fn whoever_publishes_brings_no_absent_contact_home() {
    let world = World::new().await;
    let (romeo, juliet) = world.friends().await;
    let away = juliet.jid().to_bare();
    romeo.ends().await;
    juliet.ends().await;
    let world = world.restart().await;
    let mut romeo = world.bind("romeo/orchard").await;
    romeo.asks(&publish(TUNE, "1", &[])).await;
    assert!(world.node.parts.homes.known(&away).is_none());
}

/// A publication on a node that only its owner sees and that keeps all.
fn private_options(publish: &str) -> String {
    let fields = [("max_items", "max"), ("access_model", "whitelist"), ("send_last_published_item", "never")];
    let fields =
        fields.map(|(var, value)| format!("<field var='pubsub#{var}'><value>{value}</value></field>")).concat();
    let options = format!("<publish-options><x xmlns='jabber:x:data' type='submit'>{fields}</x></publish-options>");
    iq("set", "", &pubsub(&format!("{publish}{options}")))
}

#[tokio::test]
async fn old_and_new_clients_have_the_same_bookmarks() {
    let world = World::new().await;
    let mut old = world.online("romeo/old").await;
    let mut new = world.bind("romeo/new").await;
    new.wants(&[BOOKMARKS_NODE]).await;
    old.skip();
    let private =
        |type_: &str, inner: &str| iq(type_, "", &format!("<query xmlns='jabber:iq:private'>{inner}</query>"));
    let empty = old.asks(&private("get", "<storage xmlns='storage:bookmarks'/>")).await;
    assert!(!empty.contains("conference") && empty.contains("storage:bookmarks"), "{empty}");
    let bookmark = "<item id='a@rooms.localhost'><conference xmlns='urn:xmpp:bookmarks:1' name='A' autojoin='1'>
         <nick>Romeo</nick><extensions><x xmlns='urn:x'/></extensions></conference></item>";
    new.sends(&private_options(&format!("<publish node='{BOOKMARKS_NODE}'>{bookmark}</publish>"))).await;
    new.sees(&format!(
        "<message><event xmlns='{}'><items node='{BOOKMARKS_NODE}'><item id='a@rooms.localhost'/></items></event></message>",
        ns::PUBSUB_EVENT
    ));
    new.sees("<iq type='result' id='q'/>");
    let both = "<storage xmlns='storage:bookmarks'><url name='web' url='http://localhost/'/>
         <conference jid='a@rooms.localhost' name='A' autojoin='1'><nick>Romeo</nick></conference>
         <conference jid='b@rooms.localhost' name='B'/></storage>";
    old.asks(&private("set", both)).await;
    let told = |id: &str| {
        format!(
            "<message><event xmlns='{}'><items node='{BOOKMARKS_NODE}'><item id='{id}'/></items></event></message>",
            ns::PUBSUB_EVENT
        )
    };
    new.sees(&told("b@rooms.localhost"));
    new.sees_nothing();
    let kept = new.asks(&items("", BOOKMARKS_NODE, "")).await;
    assert!(kept.contains("<x xmlns='urn:x'/>") && kept.contains("name='B'"), "{kept}");
    let found = old.asks(&private("get", "<storage xmlns='storage:bookmarks'/>")).await;
    for told in ["url='http://localhost/'", "jid='a@rooms.localhost'", "jid='b@rooms.localhost'", "<nick>Romeo</nick>"]
    {
        assert!(found.contains(told), "{told} in {found}");
    }
    let one = "<storage xmlns='storage:bookmarks'><conference jid='b@rooms.localhost' name='B'/></storage>";
    old.asks(&private("set", one)).await;
    new.sees(&retraction("romeo", BOOKMARKS_NODE, "a@rooms.localhost"));
    new.sees_nothing();
    old.asks(&private("set", "<prefs xmlns='urn:prefs'><dark/></prefs>")).await;
    let prefs = old.asks(&private("get", "<prefs xmlns='urn:prefs'/>")).await;
    assert!(prefs.contains("<dark/>"), "{prefs}");
    old.is_refused(&private("get", ""), "not-acceptable", "").await;
    let mut juliet = world.online("juliet/balcony").await;
    let theirs = private("get", "<prefs xmlns='urn:prefs'/>").replace(" id=", " to='romeo@localhost' id=");
    juliet.is_refused(&theirs, "forbidden", "").await;
}
