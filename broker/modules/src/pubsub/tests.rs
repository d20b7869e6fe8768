//! Dialogues with the pubsub host, alone and together with what other protocols publish.

use crate::tests::world::{Person, World};
use parking_lot::Mutex;
use std::sync::Arc;
use tavi_core::{Change, Draft, Principal, Publication, Qos, SubOptions, Subscriber};

const EVENT: &str = "http://jabber.org/protocol/pubsub#event";

fn set(pubsub: &str) -> String {
    format!(
        "<iq type='set' to='pubsub.localhost' id='s'><pubsub xmlns='http://jabber.org/protocol/pubsub'>{pubsub}</pubsub></iq>"
    )
}

fn get(pubsub: &str) -> String {
    set(pubsub).replace("type='set'", "type='get'").replace("id='s'", "id='g'")
}

fn owner(pubsub: &str) -> String {
    set(pubsub).replace("protocol/pubsub'", "protocol/pubsub#owner'")
}

async fn subscribes(person: &mut Person, node: &str) {
    let jid = person.jid().bare().to_owned();
    person.sends(&set(&format!("<subscribe node='{node}' jid='{jid}'/>"))).await;
    person.sees(&format!(
        "<iq type='result' id='s'><pubsub xmlns='http://jabber.org/protocol/pubsub'>
         <subscription node='{node}' jid='{jid}' subscription='subscribed'/></pubsub></iq>"
    ));
}

async fn publishes(person: &mut Person, node: &str, item: &str) {
    person.sends(&set(&format!("<publish node='{node}'>{item}</publish>"))).await;
}

/// What a device publishes over MQTT.
async fn device_publishes(world: &World, payload: &'static [u8], content_type: &str, draft: Draft) {
    let draft = Draft {
        topic: "d/abc/up/t".into(),
        payload: payload.into(),
        content_type: (!content_type.is_empty()).then(|| content_type.into()),
        qos: Qos::AtMostOnce,
        ..draft
    };
    world.node.parts.topics.publish(&world.device("abc"), draft).unwrap().complete().await.unwrap();
}

fn event(items: &str) -> String {
    format!(
        "<message type='headline' from='pubsub.localhost'><event xmlns='{EVENT}'><items>{items}</items></event></message>"
    )
}

#[tokio::test]
async fn what_a_device_publishes_reaches_who_subscribed() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sends(&set("<subscribe node='d/abc/up/#' jid='romeo@localhost'/>")).await;
    romeo.sees_error("forbidden");
    world.grant("romeo@localhost", "subscribe,retrieve", "d/abc/#").await;
    subscribes(&mut romeo, "d/abc/up/#").await;
    device_publishes(&world, b"21.5", "", Draft::default()).await;
    let seen = romeo.sees(&event(
        "<item publisher='abc@things.localhost'><data xmlns='urn:tavi:data:0' encoding='utf-8'>21.5</data></item>",
    ));
    assert!(seen.contains("node='d/abc/up/t'") && seen.contains("to='romeo@localhost'"), "{seen}");
    device_publishes(&world, b"<t xmlns='urn:t'>22</t>", "application/xml", Draft { retain: true, ..Draft::default() })
        .await;
    romeo.sees(&event("<item id='*'><t xmlns='urn:t'>22</t></item>"));
    romeo.sends(&get("<items node='d/abc/up/t'/>")).await;
    romeo.sees(
        "<iq type='result' id='g'><pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='d/abc/up/t'>
         <item publisher='abc@things.localhost'><t xmlns='urn:t'>22</t></item></items></pubsub></iq>",
    );
    device_publishes(&world, b"", "", Draft { change: Change::Clear, ..Draft::default() }).await;
    let cleared = romeo.sees(&event("<retract id='*'/>"));
    assert!(cleared.contains("d/abc/up/t"), "{cleared}");
    romeo.sends(&get("<items node='d/abc/up/t'/>")).await;
    romeo.sees_error("item-not-found");
    device_publishes(&world, b"", "", Draft { change: Change::Clear, ..Draft::default() }).await;
    romeo.sees_nothing();
}

#[tokio::test]
async fn what_a_person_publishes_becomes_the_topic_s_retained_value() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let cases: [(&str, &[u8], Option<&str>); 3] = [
        ("<json xmlns='urn:xmpp:json:0'>{}</json>", b"{}", Some("application/json")),
        ("<data xmlns='urn:tavi:data:0' type='a/b' encoding='base64'>AP8=</data>", &[0, 255], Some("a/b")),
        ("<on xmlns='urn:x'/>", b"<on xmlns='urn:x'/>", Some("application/xml")),
    ];
    for (payload, bytes, type_) in cases {
        publishes(&mut romeo, "u/romeo/lamp", &format!("<item id='one'>{payload}</item>")).await;
        romeo.sees("<iq type='result' id='s'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='u/romeo/lamp'><item id='one'/></publish></pubsub></iq>");
        let value = world.node.parts.topics.retained("u/romeo/lamp").pop().unwrap();
        assert_eq!((&*value.payload, value.content_type.as_deref(), value.qos), (bytes, type_, Qos::AtLeastOnce));
        assert_eq!(value.from, Principal::Account("romeo@localhost".parse().unwrap()));
    }
    publishes(&mut romeo, "u/romeo/lamp", "<item><on xmlns='urn:x'/></item>").await;
    romeo.sees("<iq type='result'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish><item id='*'/></publish></pubsub></iq>");
}

#[tokio::test]
async fn the_last_item_comes_on_subscription_on_presence_and_after_a_restart() {
    let world = World::new().await;
    world.grant("@everyone", "subscribe,retrieve", "news").await;
    world.grant("romeo@localhost", "publish", "news").await;
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "news", "<item id='1'><on xmlns='urn:x'/></item>").await;
    romeo.skip();
    world.clock.advance(60_000);
    let mut juliet = world.online("juliet/balcony").await;
    subscribes(&mut juliet, "news").await;
    let last = "<message type='headline' to='juliet@localhost'><event xmlns='http://jabber.org/protocol/pubsub#event'><items node='news'>
        <item id='1' publisher='romeo@localhost'><on xmlns='urn:x'/></item></items></event>
        <delay xmlns='urn:xmpp:delay' from='pubsub.localhost' stamp='2026-11-22T15:00:00.000Z'/></message>";
    juliet.sees(last);
    juliet.ends().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees(last);
    juliet.sees_nothing();

    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees(last);
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "news", "<item id='2'><off xmlns='urn:x'/></item>").await;
    let seen = juliet.sees(&event("<item id='2'><off xmlns='urn:x'/></item>"));
    assert!(!seen.contains("delay"), "{seen}");
    assert_eq!(romeo.takes(1).len(), 1);
    romeo.sees_nothing();
}

#[tokio::test]
async fn the_last_items_of_a_wide_filter_all_come_each_once() {
    let world = World::new().await;
    let topics = world.node.parts.topics.clone();
    for n in 0..700 {
        let draft = Draft { topic: format!("u/juliet/{n}").into(), payload: "1".into(), ..Draft::default() };
        let draft = Draft { retain: true, ..draft };
        let juliet = Principal::Account("juliet@localhost".parse().unwrap());
        topics.publish(&juliet, draft).unwrap().complete().await.unwrap();
    }
    let mut juliet = world.online("juliet/balcony").await;
    for filter in ["u/juliet/#", "u/juliet/+"] {
        juliet.sends(&set(&format!("<subscribe node='{filter}' jid='juliet@localhost'/>"))).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(juliet.takes(701).len(), 701, "the answer and all items");
    }
    juliet.ends().await;
    let mut juliet = world.online("juliet/balcony").await;
    for _ in 0..40 {
        tokio::task::yield_now().await;
    }
    assert_eq!(juliet.takes(700).len(), 700);
    juliet.sees_nothing();
}

#[tokio::test]
async fn events_are_not_kept_and_a_full_jid_gets_its_own() {
    let world = World::new().await;
    let mut orchard = world.online("romeo/orchard").await;
    let mut home = world.online("romeo/home").await;
    orchard.skip();
    home.skip();
    home.sends(&set("<subscribe node='u/romeo/a' jid='romeo@localhost/home'/>")).await;
    home.skip();
    publishes(&mut orchard, "u/romeo/a", "<item id='1'><on xmlns='urn:x'/></item>").await;
    orchard.sees("<iq type='result'/>");
    orchard.sees_nothing();
    home.sees(&event("<item id='1'/>"));
    home.ends().await;
    orchard.sees("<presence type='unavailable'/>");
    publishes(&mut orchard, "u/romeo/a", "<item id='2'><on xmlns='urn:x'/></item>").await;
    orchard.sees("<iq type='result'/>");
    orchard.sees_nothing();
}

#[tokio::test]
async fn subscriptions_are_listed_and_end() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    subscribes(&mut romeo, "u/romeo/a").await;
    subscribes(&mut romeo, "u/romeo/+").await;
    subscribes(&mut romeo, "u/romeo/a").await;
    romeo.sends(&get("<subscriptions/>")).await;
    let seen = romeo.sees("<iq id='g'><pubsub xmlns='http://jabber.org/protocol/pubsub'><subscriptions><subscription node='u/romeo/a' jid='romeo@localhost'/></subscriptions></pubsub></iq>");
    assert_eq!(seen.matches("<subscription ").count(), 2, "{seen}");
    publishes(&mut romeo, "u/romeo/a", "<item id='1'><on xmlns='urn:x'/></item>").await;
    romeo.sees(&event("<item id='1'/>"));
    romeo.sees("<iq type='result'/>");

    romeo.sends(&set("<unsubscribe node='u/romeo/a' jid='romeo@localhost'/>")).await;
    romeo.sees("<iq type='result' id='s'/>");
    romeo.sends(&set("<unsubscribe node='u/romeo/a' jid='romeo@localhost'/>")).await;
    assert!(romeo.sees_error("unexpected-request").contains("not-subscribed"));
    romeo.sends(&set("<unsubscribe node='u/romeo/+' jid='romeo@localhost'/>")).await;
    romeo.skip();
    let world = world.restart().await;
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "u/romeo/a", "<item id='2'><on xmlns='urn:x'/></item>").await;
    romeo.sees("<iq type='result'/>");
    romeo.sees_nothing();
}

#[tokio::test]
async fn retracting_purging_and_deleting_clear_the_value_and_are_seen() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    subscribes(&mut romeo, "u/romeo/a").await;
    let item = "<item id='1'><on xmlns='urn:x'/></item>";
    publishes(&mut romeo, "u/romeo/a", item).await;
    romeo.skip();
    romeo.sends(&set("<retract node='u/romeo/a'><item id='other'/></retract>")).await;
    romeo.sees_error("item-not-found");
    romeo.sends(&set("<retract node='u/romeo/a' notify='true'><item id='1'/></retract>")).await;
    romeo.sees(&event("<retract id='1'/>"));
    romeo.sees("<iq type='result'/>");

    publishes(&mut romeo, "u/romeo/a", item).await;
    romeo.skip();
    romeo.sends(&owner("<purge node='u/romeo/a'/>")).await;
    let purge = "<event xmlns='http://jabber.org/protocol/pubsub#event'><purge node='u/romeo/a'/></event>";
    romeo.sees(&format!("<message type='headline' from='pubsub.localhost'>{purge}</message>"));
    romeo.sees("<iq type='result'/>");
    assert!(world.node.parts.topics.retained("#").is_empty());

    publishes(&mut romeo, "u/romeo/a", item).await;
    romeo.skip();
    romeo.sends(&owner("<delete node='u/romeo/a'/>")).await;
    romeo.sees("<iq type='result'/>");
    romeo
        .sees(&format!("<message type='headline'><event xmlns='{EVENT}'><delete node='u/romeo/a'/></event></message>"));
    romeo.sends(&owner("<delete node='u/romeo/a'/>")).await;
    romeo.sees_error("item-not-found");
    publishes(&mut romeo, "u/romeo/a", item).await;
    romeo.sees("<iq type='result'/>");
    romeo.sees_nothing();
}

#[tokio::test]
async fn who_creates_a_node_owns_it() {
    let world = World::new().await;
    world.grant("@everyone", "create", "clubs/+").await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    romeo.sends(&set("<create node='clubs/fencing'/>")).await;
    romeo.sees("<iq type='result' id='s'/>");
    juliet.sends(&set("<create node='clubs/fencing'/>")).await;
    juliet.sees_error("conflict");
    publishes(&mut juliet, "clubs/fencing", "<item><on xmlns='urn:x'/></item>").await;
    juliet.sees_error("forbidden");
    let world = world.restart().await;
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "clubs/fencing", "<item><on xmlns='urn:x'/></item>").await;
    romeo.sees("<iq type='result'/>");
    romeo.sends(&get("<affiliations/>")).await;
    romeo.sees("<iq id='g'><pubsub xmlns='http://jabber.org/protocol/pubsub'><affiliations><affiliation node='clubs/fencing' affiliation='owner'/></affiliations></pubsub></iq>");
    romeo.sends(&owner("<delete node='clubs/fencing'/>")).await;
    romeo.sees("<iq type='result'/>");
    publishes(&mut romeo, "clubs/fencing", "<item><on xmlns='urn:x'/></item>").await;
    romeo.sees_error("forbidden");
}

#[tokio::test]
async fn each_mistake_gets_the_error_that_names_it() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let on = "<on xmlns='urn:x'/>";
    let cases = [
        (set(&format!("<publish node='u/juliet/a'><item>{on}</item></publish>")), "forbidden", ""),
        (set(&format!("<publish node='u/romeo/+'><item>{on}</item></publish>")), "bad-request", ""),
        (set(&format!("<publish node='u/romeo/..'><item>{on}</item></publish>")), "bad-request", ""),
        (set(&format!("<publish><item>{on}</item></publish>")), "bad-request", "nodeid-required"),
        (set("<publish node='u/romeo/a'/>"), "bad-request", "item-required"),
        (set("<publish node='u/romeo/a'><item/></publish>"), "bad-request", "payload-required"),
        (set(&format!("<publish node='u/romeo/a'><item>{on}{on}</item></publish>")), "bad-request", "invalid-payload"),
        (
            set(&format!("<publish node='u/romeo/a'><item>{on}</item><item>{on}</item></publish>")),
            "not-allowed",
            "max-items-exceeded",
        ),
        (set("<subscribe node='u/romeo/a' jid='juliet@localhost'/>"), "bad-request", "invalid-jid"),
        (set("<subscribe node='u/romeo/a'/>"), "bad-request", "jid-required"),
        (set("<subscribe node='u/romeo/a#' jid='romeo@localhost'/>"), "bad-request", ""),
        (set("<subscribe node='#' jid='romeo@localhost'/>"), "forbidden", ""),
        (set("<create/>"), "not-acceptable", "nodeid-required"),
        (set("<create node='d/abc/x'/>"), "forbidden", ""),
        (get("<items node='u/juliet/a'/>"), "forbidden", ""),
        (get("<items node='u/romeo/#'/>"), "bad-request", ""),
        (set("<retract node='u/juliet/a'><item id='1'/></retract>"), "forbidden", ""),
        (owner("<delete node='u/juliet/a'/>"), "forbidden", ""),
        (owner("<purge node='u/juliet/a'/>"), "forbidden", ""),
        (owner("<affiliations node='u/romeo/a'/>"), "feature-not-implemented", "modify-affiliations"),
        (set("<odd/>"), "bad-request", ""),
        (set("<publish node='u/romeo/a'/>").replace("pubsub.localhost", "x@pubsub.localhost"), "item-not-found", ""),
        (
            "<iq type='get' to='pubsub.localhost' id='1'><query xmlns='jabber:iq:version'/></iq>".into(),
            "service-unavailable",
            "",
        ),
        ("<message to='pubsub.localhost'><body>Hi</body></message>".into(), "service-unavailable", ""),
    ];
    for (request, condition, specific) in cases {
        romeo.sends(&request).await;
        let seen = romeo.sees_error(condition);
        assert!(seen.contains(specific), "{request}: {seen}");
    }
    romeo.sends("<presence to='pubsub.localhost'/>").await;
    romeo.sees_nothing();
}

#[tokio::test]
async fn configuration_is_told_and_nothing_else_is_promised() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let read = owner("<configure node='u/romeo/a'/>").replace("type='set'", "type='get'");
    for nowhere in [&read, &owner("<purge node='u/romeo/a'/>"), &get("<items node='u/romeo/a'/>")] {
        romeo.sends(nowhere).await;
        romeo.sees_error("item-not-found");
    }
    romeo.sends(&set("<create node='u/romeo/a'/>")).await;
    romeo.sees("<iq type='result'/>");
    romeo.sends(&read).await;
    romeo.sees(
        "<iq type='result'><pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><configure node='u/romeo/a'><x xmlns='jabber:x:data' type='form'>
         <field var='pubsub#max_items'><value>1</value></field></x></configure></pubsub></iq>",
    );
    let options = |var: &str, value: &str| {
        set(&format!(
            "<publish node='u/romeo/a'><item><on xmlns='urn:x'/></item></publish><publish-options>
             <x xmlns='jabber:x:data' type='submit'><field var='{var}'><value>{value}</value></field></x></publish-options>"
        ))
    };
    romeo.sends(&options("pubsub#persist_items", "true")).await;
    romeo.sees("<iq type='result'/>");
    romeo.sends(&options("pubsub#max_items", "10")).await;
    assert!(romeo.sees_error("conflict").contains("precondition-not-met"));
    let configure = "<configure node='u/romeo/a'><x xmlns='jabber:x:data'><field var='pubsub#access_model'><value>open</value></field></x></configure>";
    romeo.sends(&owner(configure)).await;
    romeo.sees_error("not-acceptable");
}

#[tokio::test]
async fn topics_are_discovered_page_by_page_and_only_where_one_may_look() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    for node in ["u/romeo/a", "u/romeo/b", "u/romeo/c"] {
        publishes(&mut romeo, node, "<item id='1'><on xmlns='urn:x'/></item>").await;
    }
    romeo.skip();
    let ask = |rsm: &str| {
        format!(
            "<iq type='get' to='pubsub.localhost' id='d'><query xmlns='http://jabber.org/protocol/disco#items'>{rsm}</query></iq>"
        )
    };
    romeo.sends(&ask("<set xmlns='http://jabber.org/protocol/rsm'><max>2</max></set>")).await;
    let seen = romeo.sees(
        "<iq id='d'><query xmlns='http://jabber.org/protocol/disco#items'><item jid='pubsub.localhost' node='u/romeo/a'/><item node='u/romeo/b'/>
         <set xmlns='http://jabber.org/protocol/rsm'><first>u/romeo/a</first><last>u/romeo/b</last></set></query></iq>",
    );
    assert!(!seen.contains("u/romeo/c"), "{seen}");
    romeo.sends(&ask("<set xmlns='http://jabber.org/protocol/rsm'><max>2</max><after>u/romeo/b</after></set>")).await;
    romeo
        .sees("<iq id='d'><query xmlns='http://jabber.org/protocol/disco#items'><item node='u/romeo/c'/></query></iq>");
    juliet.sends(&ask("")).await;
    let seen = juliet.sees("<iq type='result' id='d'/>");
    assert!(!seen.contains("romeo"), "{seen}");

    let info = |node: &str| {
        format!(
            "<iq type='get' to='pubsub.localhost' id='i'><query xmlns='http://jabber.org/protocol/disco#info'{node}/></iq>"
        )
    };
    juliet.sends(&info("")).await;
    juliet.sees("<iq id='i'><query xmlns='http://jabber.org/protocol/disco#info'><identity category='pubsub' type='service'/><feature var='http://jabber.org/protocol/pubsub#publish'/></query></iq>");
    for node in [" node='u/romeo/a'", " node='u/romeo/missing'"] {
        juliet.sends(&info(node)).await;
        juliet.sees_error("forbidden");
    }
    romeo.sends(&info(" node='u/romeo/a'")).await;
    romeo.sees("<iq id='i'><query xmlns='http://jabber.org/protocol/disco#info' node='u/romeo/a'><identity category='pubsub' type='leaf'/></query></iq>");
    romeo.sends(&info(" node='u/romeo/missing'")).await;
    romeo.sees_error("item-not-found");
    romeo.sends(&ask("").replace("#items'", "#items' node='u/romeo/a'")).await;
    romeo.sees("<iq id='d'><query xmlns='http://jabber.org/protocol/disco#items' node='u/romeo/a'><item jid='pubsub.localhost' name='1'/></query></iq>");
}

#[tokio::test]
async fn a_lost_grant_ends_events_and_last_items_at_once() {
    let world = World::new().await;
    world.grant("juliet@localhost", "subscribe", "u/romeo/#").await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    subscribes(&mut juliet, "u/romeo/+").await;
    publishes(&mut romeo, "u/romeo/a", "<item id='1'><on xmlns='urn:x'/></item>").await;
    juliet.sees(&event("<item id='1'/>"));
    world.node.parts.permit.remove(|_| true).1.await.unwrap();
    publishes(&mut romeo, "u/romeo/a", "<item id='2'><on xmlns='urn:x'/></item>").await;
    juliet.sees_nothing();
    juliet.ends().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees_nothing();
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable() {
    let (world, store) = World::delayed().await;
    let mut romeo = world.bind("romeo/orchard").await;
    let ticket =
        romeo.begins(&set("<publish node='u/romeo/a'><item id='1'><on xmlns='urn:x'/></item></publish>")).await;
    // The service has a task of its own.
    tokio::task::yield_now().await;
    assert_eq!(store.waiting(), 1);
    romeo.sees_nothing();
    store.release_all();
    ticket.complete().await.unwrap();
    romeo.sees("<iq type='result' id='s'/>");
}

/// A device's MQTT session.
struct Device {
    id: u64,
    who: Principal,
    seen: Mutex<Vec<String>>,
}

impl Subscriber for Device {
    fn id(&self) -> u64 {
        self.id
    }

    fn principal(&self) -> &Principal {
        &self.who
    }

    fn deliver(&self, publication: &Arc<Publication>, _: &[SubOptions]) {
        let type_ = publication.content_type.as_deref().unwrap_or("-");
        self.seen.lock().push(format!(
            "{} {type_} {}",
            publication.topic,
            String::from_utf8_lossy(&publication.payload)
        ));
    }
}

#[tokio::test]
async fn what_a_person_publishes_reaches_a_device() {
    let world = World::new().await;
    world.grant("romeo@localhost", "publish", "d/abc/cmd/#").await;
    let topics = &world.node.parts.topics;
    let device = Arc::new(Device { id: topics.next_subscriber(), who: world.device("abc"), seen: Mutex::default() });
    let handle: Arc<dyn Subscriber> = device.clone();
    topics.subscribe(&handle, "d/abc/cmd/#", SubOptions::default()).unwrap();
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "d/abc/cmd/power", "<item><data xmlns='urn:tavi:data:0' type='text/plain'>on</data></item>")
        .await;
    publishes(&mut romeo, "d/abc/cmd/mode", "<item><json xmlns='urn:xmpp:json:0'>{\"m\":1}</json></item>").await;
    assert_eq!(*device.seen.lock(), ["d/abc/cmd/power text/plain on", "d/abc/cmd/mode application/json {\"m\":1}"]);
    publishes(&mut romeo, "d/abc/state", "<item><data xmlns='urn:tavi:data:0'>online</data></item>").await;
    romeo.takes(2);
    romeo.sees_error("forbidden");
}

#[tokio::test]
async fn a_removed_account_s_subscriptions_are_gone_after_the_next_start() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    subscribes(&mut romeo, "u/romeo/a").await;
    world.node.parts.accounts.remove(&romeo.jid().to_bare()).await.unwrap();
    let world = world.restart().await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sends(&get("<subscriptions/>")).await;
    let seen = romeo.sees("<iq type='result' id='g'/>");
    assert!(!seen.contains("u/romeo/a"), "{seen}");
    assert_eq!(world.node.parts.topics.counts().0, 0);
}

#[tokio::test]
async fn topics_cannot_be_subscribed_to_without_end() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    for n in 0..1000 {
        subscribes(&mut romeo, &format!("u/romeo/{n}")).await;
    }
    romeo.sends(&set("<subscribe node='u/romeo/more' jid='romeo@localhost'/>")).await;
    assert!(romeo.sees_error("policy-violation").contains("too-many-subscriptions"));
    subscribes(&mut romeo, "u/romeo/7").await;
}

#[tokio::test]
async fn a_successor_of_the_same_name_gets_nothing_that_another_subscribed_to() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    subscribes(&mut romeo, "u/romeo/a").await;
    let jid = romeo.jid().to_bare();
    world.node.parts.accounts.remove(&jid).await.unwrap();
    world.node.parts.revoke(&jid);
    romeo.ends().await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.node.parts.topics.counts().0, 0);
    let mut successor = world.online("romeo/orchard").await;
    publishes(&mut successor, "u/romeo/a", "<item><on xmlns='urn:x'/></item>").await;
    successor.sees("<iq type='result'/>");
    successor.sees_nothing();
}

#[tokio::test]
async fn who_keeps_as_much_as_one_may_keep_is_told_so() {
    let world = World::new().await;
    world.node.parts.topics.set_quota(tavi_core::topics::Quota { topics: 1, bytes: 10_000 });
    let mut romeo = world.online("romeo/orchard").await;
    publishes(&mut romeo, "u/romeo/a", "<item><x xmlns='urn:x'/></item>").await;
    romeo.skip();
    publishes(&mut romeo, "u/romeo/b", "<item><x xmlns='urn:x'/></item>").await;
    let error = romeo.sees_error("resource-constraint");
    assert!(error.contains("retained_topics"), "{error}");
}
