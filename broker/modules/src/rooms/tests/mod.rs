//! One room in virtual time; dialogues over a node are in `scenarios.rs`.

mod scenarios;

use super::{
    kept,
    room::{Affiliation, Limits, Role, Room, Turn},
};
use proptest::prelude::*;
use std::sync::Arc;
use tavi_core::Envelope;
use tavi_store::{MemoryStore, Op, SharedStore};
use tavi_xmpp_proto::{BareJid, Jid, Stanza};

const ENTER: &str = "<x xmlns='http://jabber.org/protocol/muc'/>";
/// 2026-11-22T15:00:00Z.
const NOW: u64 = 1_795_359_600_000;

/// A room, its clock, and what was saved.
struct Stage {
    room: Room,
    now_ms: u64,
    id: u64,
    ops: Vec<Op>,
}

impl Stage {
    fn new(limits: Limits) -> Stage {
        let jid: BareJid = "coven@rooms.localhost".parse().unwrap();
        let room = Room::made(&jid, &"crone1@localhost".parse().unwrap(), limits, NOW);
        Stage { room, now_ms: NOW, id: 1_000, ops: Vec::new() }
    }

    /// An open room with its owner in it.
    fn open() -> Stage {
        let mut stage = Stage::new(Limits::default());
        stage.enters("crone1@localhost/desktop", "firstwitch");
        stage.configures(&[]);
        stage
    }

    /// What is sent when this stanza has come, each with its recipient.
    fn sends(&mut self, from: &str, xml: &str) -> Vec<String> {
        let mut stanza = Stanza::parse(xml.as_bytes()).unwrap_or_else(|error| panic!("{xml}: {error}"));
        stanza.head.from = Some(from.parse().unwrap());
        let env: Envelope = stanza.into();
        self.id += 1;
        let mut turn = Turn::new(&env, self.now_ms, self.id);
        self.room.handle(&mut turn);
        self.ops.extend(turn.ops);
        turn.out.iter().map(|env| String::from_utf8(env.to_bytes().to_vec()).unwrap()).collect()
    }

    fn enters(&mut self, who: &str, nick: &str) -> Vec<String> {
        self.sends(who, &format!("<presence to='coven@rooms.localhost/{nick}'>{ENTER}</presence>"))
    }

    fn says(&mut self, who: &str, body: &str) -> Vec<String> {
        self.sends(
            who,
            &format!("<message to='coven@rooms.localhost' type='groupchat' id='m'><body>{body}</body></message>"),
        )
    }

    fn asks(&mut self, who: &str, type_: &str, ns: &str, inner: &str) -> Vec<String> {
        let query = format!("<query xmlns='http://jabber.org/protocol/{ns}'>{inner}</query>");
        self.sends(who, &format!("<iq to='coven@rooms.localhost' type='{type_}' id='q'>{query}</iq>"))
    }

    /// The owner sends in a form.
    fn configures(&mut self, fields: &[(&str, &str)]) -> Vec<String> {
        let fields: String = fields
            .iter()
            .map(|(var, value)| format!("<field var='muc#roomconfig_{var}'><value>{value}</value></field>"))
            .collect();
        let form = format!("<x xmlns='jabber:x:data' type='submit'>{fields}</x>");
        self.asks("crone1@localhost/desktop", "set", "muc#owner", &form)
    }

    fn administers(&mut self, who: &str, item: &str) -> Vec<String> {
        self.asks(who, "set", "muc#admin", item)
    }

    fn role(&self, nick: &str) -> Role {
        let jid = self.room.address.with_resource(nick).unwrap();
        self.room.find(&jid).map_or(Role::None, |index| self.room.occupants[index].role)
    }
}

/// A stanza that was sent has all of these in it.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[track_caller]
fn refused(sent: &[String], condition: &str) {
    assert_eq!(sent.len(), 1, "{sent:?}");
    has(&sent[0], &["type='error'", &format!("<{condition} ")]);
}

const OWNER: &str = "crone1@localhost/desktop";
const SECOND: &str = "wiccarocks@localhost/laptop";
const THIRD: &str = "hag66@localhost/pda";

#[test]
fn a_new_room_is_its_makers_and_locked_until_they_take_it() {
    let mut stage = Stage::new(Limits::default());
    let sent = stage.enters(OWNER, "firstwitch");
    assert_eq!(sent.len(), 2);
    has(
        &sent[0],
        &["from='coven@rooms.localhost/firstwitch'", "affiliation='owner'", "role='moderator'", "'110'", "'201'"],
    );
    has(&sent[1], &["<message from='coven@rooms.localhost'", "type='groupchat'", "<subject/>"]);
    refused(&stage.enters(SECOND, "secondwitch"), "item-not-found");
    refused(&stage.asks(SECOND, "get", "muc#owner", ""), "forbidden");
    has(&stage.asks(OWNER, "get", "muc#owner", "")[0], &["type='form'", "muc#roomconfig_membersonly"]);
    has(&stage.configures(&[])[0], &["<iq from='coven@rooms.localhost'", "type='result'"]);
    assert_eq!(stage.enters(SECOND, "secondwitch").len(), 4);
    assert!(!stage.room.is_over() && stage.ops.is_empty());
}

#[test]
fn a_new_room_that_nobody_wants_is_gone() {
    let mut stage = Stage::new(Limits::default());
    stage.enters(OWNER, "firstwitch");
    let sent = stage.asks(OWNER, "set", "muc#owner", "<x xmlns='jabber:x:data' type='cancel'/>");
    has(&sent[0], &["type='unavailable'", "<destroy/>"]);
    assert!(stage.room.is_over());
}

#[test]
fn who_enters_hears_of_the_others_then_of_itself_then_what_was_said_then_the_subject() {
    let mut stage = Stage::open();
    stage.says(OWNER, "Thrice the brinded cat hath mew'd.");
    stage.now_ms += 60_000;
    let sent = stage.enters(SECOND, "secondwitch");
    has(&sent[0], &["from='coven@rooms.localhost/firstwitch'", "to='wiccarocks@localhost/laptop'"]);
    assert!(!sent[0].contains("jid="), "a participant does not see who it is: {}", sent[0]);
    has(&sent[1], &["to='crone1@localhost/desktop'", "jid='wiccarocks@localhost/laptop'", "role='participant'"]);
    has(&sent[2], &["to='wiccarocks@localhost/laptop'", "<status code='110'/>"]);
    assert!(!sent[2].contains("'201'") && !sent[2].contains("'100'"), "{}", sent[2]);
    has(
        &sent[3],
        &["brinded cat", "<delay xmlns='urn:xmpp:delay' from='coven@rooms.localhost' stamp='2026-11-22T15:00:00.000Z'"],
    );
    has(&sent[4], &["<subject/>"]);
    assert_eq!(sent.len(), 5);
}

#[test]
fn where_addresses_are_no_secret_all_see_them_and_are_told_so() {
    let mut stage = Stage::open();
    let sent = stage.configures(&[("whois", "anyone")]);
    has(&sent[0], &["to='crone1@localhost/desktop'", "type='groupchat'", "<status code='172'/>"]);
    let sent = stage.enters(SECOND, "secondwitch");
    has(&sent[0], &["jid='crone1@localhost/desktop'"]);
    has(&sent[2], &["<status code='110'/>", "<status code='100'/>"]);
    has(&stage.configures(&[("whois", "moderators")])[0], &["<status code='173'/>"]);
    has(&stage.configures(&[("roomname", "Cave")])[0], &["<status code='104'/>"]);
}

#[test]
fn a_nick_is_one_accounts_and_may_be_in_many_of_its_sessions() {
    let mut stage = Stage::open();
    stage.enters(THIRD, "thirdwitch");
    refused(&stage.enters(SECOND, "thirdwitch"), "conflict");
    let sent = stage.enters("hag66@localhost/phone", "thirdwitch");
    has(&sent[0], &["from='coven@rooms.localhost/firstwitch'", "to='hag66@localhost/phone'"]);
    assert_eq!(sent.iter().filter(|text| text.contains("<status code='110'/>")).count(), 2, "{sent:?}");
    assert_eq!(stage.room.occupants.len(), 2);
    let said = stage.says("hag66@localhost/phone", "Hi");
    assert_eq!(said.len(), 3);
    let whispered =
        stage.sends(OWNER, "<message to='coven@rooms.localhost/thirdwitch' type='chat'><body>psst</body></message>");
    has(&whispered[0], &["to='hag66@localhost/pda'", "from='coven@rooms.localhost/firstwitch'"]);
    has(&whispered[1], &["to='hag66@localhost/phone'", "<x xmlns='http://jabber.org/protocol/muc#user'/>"]);
    // One goes: the others see the one that stays.
    let sent =
        stage.sends("hag66@localhost/phone", "<presence to='coven@rooms.localhost/thirdwitch' type='unavailable'/>");
    has(&sent[0], &["to='hag66@localhost/phone'", "type='unavailable'", "role='none'"]);
    assert!(sent[1..].iter().all(|text| !text.contains("unavailable")), "{sent:?}");
    has(&sent[1], &["to='crone1@localhost/desktop'", "jid='hag66@localhost/pda'"]);
    let sent = stage.sends(
        THIRD,
        "<presence to='coven@rooms.localhost/thirdwitch' type='unavailable'><status>bye</status></presence>",
    );
    has(&sent[0], &["to='hag66@localhost/pda'", "type='unavailable'", "<status>bye</status>", "code='110'"]);
    has(&sent[1], &["to='crone1@localhost/desktop'", "type='unavailable'", "role='none'", "jid='hag66@localhost/pda'"]);
    assert_eq!((sent.len(), stage.room.occupants.len()), (2, 1));
}

#[test]
fn clients_know_by_its_x_that_an_error_is_a_rooms() {
    let mut stage = Stage::open();
    let refused = stage.enters(SECOND, "firstwitch").remove(0);
    has(&refused, &["<x xmlns='http://jabber.org/protocol/muc'/><error type='cancel' by='coven@rooms.localhost'>"]);
    assert!(!stage.says(SECOND, "Hi")[0].contains("<x"));
}

#[test]
fn an_occupant_changes_its_nick() {
    let mut stage = Stage::open();
    stage.enters(THIRD, "thirdwitch");
    refused(&stage.sends(THIRD, "<presence to='coven@rooms.localhost/firstwitch'/>"), "conflict");
    let sent = stage.sends(THIRD, "<presence to='coven@rooms.localhost/oldhag'><show>away</show></presence>");
    has(
        &sent[0],
        &[
            "from='coven@rooms.localhost/thirdwitch'",
            "to='hag66@localhost/pda'",
            "unavailable",
            "nick='oldhag'",
            "'303'",
            "'110'",
        ],
    );
    has(&sent[1], &["to='crone1@localhost/desktop'", "unavailable", "nick='oldhag'", "'303'"]);
    has(&sent[2], &["from='coven@rooms.localhost/oldhag'", "to='crone1@localhost/desktop'", "<show>away</show>"]);
    has(&sent[3], &["from='coven@rooms.localhost/oldhag'", "to='hag66@localhost/pda'", "'110'"]);
    // A session that ends says so to the nick that it had first.
    let sent = stage.sends(THIRD, "<presence to='coven@rooms.localhost/thirdwitch' type='unavailable'/>");
    has(&sent[0], &["from='coven@rooms.localhost/oldhag'"]);
    assert!(stage.sends(THIRD, "<presence to='coven@rooms.localhost/oldhag' type='unavailable'/>").is_empty());
}

#[test]
fn a_stranger_who_thinks_to_be_inside_is_told() {
    let mut stage = Stage::open();
    let sent = stage.sends(THIRD, "<presence to='coven@rooms.localhost/thirdwitch'><show>away</show></presence>");
    has(&sent[0], &["type='unavailable'", "'110'", "'307'", "'333'"]);
    assert_eq!((sent.len(), stage.room.occupants.len()), (1, 1));
    refused(&stage.says(THIRD, "Hi"), "not-acceptable");
    refused(
        &stage.sends(THIRD, "<message to='coven@rooms.localhost/firstwitch' type='chat'><body>Hi</body></message>"),
        "not-acceptable",
    );
    for type_ in ["unavailable", "probe", "subscribe", "error"] {
        assert!(
            stage.sends(THIRD, &format!("<presence to='coven@rooms.localhost/thirdwitch' type='{type_}'/>")).is_empty()
        );
    }
}

#[test]
fn who_enters_again_gets_all_of_it_again() {
    let mut stage = Stage::open();
    stage.enters(THIRD, "thirdwitch");
    stage.says(OWNER, "Hi");
    let sent = stage.enters(THIRD, "thirdwitch");
    assert!(sent.iter().all(|text| text.contains("to='hag66@localhost/pda'")), "nothing new for others: {sent:?}");
    assert_eq!(sent.len(), 4);
    let sent = stage
        .sends(THIRD, &format!("<presence to='coven@rooms.localhost/thirdwitch'>{ENTER}<show>xa</show></presence>"));
    assert!(sent.iter().any(|text| text.contains("to='crone1@localhost/desktop'") && text.contains("<show>xa</show>")));
    assert_eq!(stage.room.occupants[1].sessions.len(), 1);
}

#[test]
fn a_message_is_from_the_occupant_for_all_with_its_id_and_place_and_nothing_forged() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    let forged = "<message to='coven@rooms.localhost' type='groupchat' id='hysf1v37' xml:lang='en'><body>Hi &amp; bye</body>
        <stanza-id xmlns='urn:xmpp:sid:0' id='1' by='coven@rooms.localhost'/><stanza-id xmlns='urn:xmpp:sid:0' id='7' by='other@rooms.localhost'/>
        <delay xmlns='urn:xmpp:delay' from='coven@rooms.localhost' stamp='1970-01-01T00:00:00Z'/>
        <x xmlns='http://jabber.org/protocol/muc#user'><status code='301'/></x></message>";
    let sent = stage.sends(SECOND, forged);
    assert_eq!(sent.len(), 2);
    for (text, to) in sent.iter().zip([OWNER, SECOND]) {
        let place = format!("<stanza-id xmlns='urn:xmpp:sid:0' id='{}' by='coven@rooms.localhost'/>", stage.id);
        has(
            text,
            &[
                &format!("to='{to}'"),
                "from='coven@rooms.localhost/secondwitch'",
                "id='hysf1v37'",
                "xml:lang='en'",
                "Hi &amp; bye",
                &place,
                "other@rooms",
            ],
        );
        assert!(!text.contains("id='1'") && !text.contains("301") && !text.contains("<delay"), "{text}");
    }
    let one = "<message to='coven@rooms.localhost/firstwitch' type='groupchat'><body>Hi</body></message>";
    refused(&stage.sends(SECOND, one), "bad-request");
    refused(
        &stage.sends(SECOND, "<message to='coven@rooms.localhost' type='chat'><body>Hi</body></message>"),
        "bad-request",
    );
    refused(
        &stage.sends(SECOND, "<message to='coven@rooms.localhost/nobody' type='chat'><body>Hi</body></message>"),
        "item-not-found",
    );
}

#[test]
fn what_is_not_worth_it_or_not_to_be_kept_is_no_history() {
    let mut stage = Stage::open();
    for child in [
        "<composing xmlns='http://jabber.org/protocol/chatstates'/>",
        "<body>secret</body><no-store xmlns='urn:xmpp:hints'/>",
        "<subject>Fire Burn and Cauldron Bubble!</subject>",
    ] {
        let sent =
            stage.sends(OWNER, &format!("<message to='coven@rooms.localhost' type='groupchat'>{child}</message>"));
        assert_eq!(sent.len(), 1, "all hear it");
    }
    let sent = stage.enters(SECOND, "secondwitch");
    assert_eq!(sent.len(), 4, "{sent:?}");
    has(&sent[3], &["from='coven@rooms.localhost/firstwitch'", "<subject>Fire Burn", "<delay "]);
    let none = format!(
        "<presence to='coven@rooms.localhost/thirdwitch'>{}</presence>",
        ENTER.replace("/>", "><history maxstanzas='0'/></x>")
    );
    stage.says(OWNER, "Hi");
    assert!(!stage.sends(THIRD, &none).iter().any(|text| text.contains("<body>")));
}

#[test]
fn the_subject_is_the_moderators_unless_the_room_says_otherwise() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    let subject = "<message to='coven@rooms.localhost' type='groupchat'><subject>Spells</subject></message>";
    refused(&stage.sends(SECOND, subject), "forbidden");
    stage.configures(&[("changesubject", "1")]);
    let sent = stage.sends(SECOND, subject);
    has(&sent[0], &["from='coven@rooms.localhost/secondwitch'", "<subject>Spells</subject>"]);
    let long = format!(
        "<message to='coven@rooms.localhost' type='groupchat'><subject>{}</subject></message>",
        "x".repeat(5_000)
    );
    refused(&stage.sends(SECOND, &long), "not-acceptable");
    assert_eq!(stage.room.subject.text, "Spells");
    // With a body it is an ordinary message.
    let both = "<message to='coven@rooms.localhost' type='groupchat'><subject>No</subject><body>Hi</body></message>";
    assert_eq!(stage.sends(SECOND, both).len(), 2);
    assert_eq!(stage.room.subject.text, "Spells");
}

#[test]
fn a_moderator_kicks_and_gives_and_takes_voice() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    stage.enters(THIRD, "thirdwitch");
    refused(&stage.administers(SECOND, "<item nick='thirdwitch' role='none'/>"), "forbidden");
    let sent = stage.administers(OWNER, "<item nick='secondwitch' role='visitor'><reason>noise</reason></item>");
    has(
        &sent[0],
        &[
            "from='coven@rooms.localhost/secondwitch'",
            "role='visitor'",
            "<actor nick='firstwitch'/>",
            "<reason>noise</reason>",
        ],
    );
    assert_eq!(sent.len(), 4);
    refused(&stage.says(SECOND, "Hi"), "forbidden");
    stage.administers(OWNER, "<item nick='secondwitch' role='moderator'/>");
    assert_eq!(stage.role("secondwitch"), Role::Moderator);
    refused(&stage.administers(SECOND, "<item nick='firstwitch' role='none'/>"), "not-allowed");
    refused(&stage.administers(SECOND, "<item nick='firstwitch' role='participant'/>"), "not-allowed");
    refused(&stage.administers(SECOND, "<item nick='thirdwitch' role='moderator'/>"), "forbidden");
    let sent = stage.administers(SECOND, "<item nick='thirdwitch' role='none'><reason>Avaunt!</reason></item>");
    has(
        &sent[0],
        &[
            "to='hag66@localhost/pda'",
            "type='unavailable'",
            "role='none'",
            "'307'",
            "'110'",
            "<reason>Avaunt!</reason>",
            "nick='secondwitch'",
        ],
    );
    has(&sent[1], &["to='crone1@localhost/desktop'", "'307'", "jid='hag66@localhost/pda'"]);
    has(sent.last().unwrap(), &["type='result'", "to='wiccarocks@localhost/laptop'"]);
    assert_eq!(stage.role("thirdwitch"), Role::None);
    refused(&stage.administers(OWNER, "<item nick='nobody' role='none'/>"), "item-not-found");
}

#[test]
fn an_admin_bans_and_makes_members_and_only_an_owner_makes_admins() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    stage.enters(THIRD, "thirdwitch");
    let sent = stage.administers(OWNER, "<item jid='wiccarocks@localhost' affiliation='admin'/>");
    has(&sent[0], &["from='coven@rooms.localhost/secondwitch'", "affiliation='admin'", "role='moderator'"]);
    refused(&stage.administers(SECOND, "<item jid='hag66@localhost' affiliation='admin'/>"), "not-allowed");
    refused(&stage.administers(SECOND, "<item jid='crone1@localhost' affiliation='outcast'/>"), "not-allowed");
    refused(&stage.administers(SECOND, "<item jid='wiccarocks@localhost' affiliation='outcast'/>"), "conflict");
    refused(&stage.administers(THIRD, "<item jid='nurse@localhost' affiliation='member'/>"), "forbidden");
    let sent =
        stage.administers(SECOND, "<item jid='hag66@localhost' affiliation='outcast'><reason>Treason</reason></item>");
    has(
        &sent[0],
        &[
            "to='hag66@localhost/pda'",
            "type='unavailable'",
            "affiliation='outcast'",
            "'301'",
            "<reason>Treason</reason>",
        ],
    );
    refused(&stage.enters(THIRD, "thirdwitch"), "forbidden");
    has(&stage.asks(SECOND, "get", "muc#admin", "<item affiliation='outcast'/>")[0], &["jid='hag66@localhost'"]);
    stage.administers(SECOND, "<item jid='hag66@localhost' affiliation='member'/>");
    stage.enters(THIRD, "thirdwitch");
    refused(&stage.asks(THIRD, "get", "muc#admin", "<item affiliation='member'/>"), "forbidden");
    has(
        &stage.asks(SECOND, "get", "muc#admin", "<item role='participant'/>")[0],
        &["nick='thirdwitch'", "affiliation='member'", "jid='hag66@localhost/pda'"],
    );
    // A room keeps an owner, whatever is changed at once.
    refused(&stage.administers(OWNER, "<item jid='crone1@localhost' affiliation='admin'/>"), "conflict");
    let sent = stage.administers(
        OWNER,
        "<item jid='crone1@localhost' affiliation='admin'/><item jid='hag66@localhost' affiliation='owner'/>",
    );
    has(sent.last().unwrap(), &["type='result'"]);
    refused(&stage.configures(&[]), "forbidden");
}

#[test]
fn a_request_that_makes_no_sense_changes_nothing() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    for (item, condition) in [
        ("", "bad-request"),
        ("<item nick='secondwitch'/>", "bad-request"),
        ("<item nick='secondwitch' role='none' affiliation='outcast'/>", "bad-request"),
        ("<item nick='secondwitch' role='king'/>", "bad-request"),
        ("<item jid='a@b@c' affiliation='member'/>", "jid-malformed"),
        ("<item nick='secondwitch' role='none'/><item nick='nobody' role='none'/>", "item-not-found"),
    ] {
        refused(&stage.administers(OWNER, item), condition);
    }
    assert_eq!(stage.role("secondwitch"), Role::Participant);
    refused(&stage.configures(&[("whois", "nobody")]), "not-acceptable");
    refused(&stage.asks(OWNER, "set", "muc#owner", ""), "bad-request");
    refused(&stage.asks(OWNER, "set", "nothing", ""), "service-unavailable");
}

#[test]
fn a_room_for_members_expels_the_others_and_asks_for_its_password() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    let sent =
        stage.configures(&[("membersonly", "1"), ("passwordprotectedroom", "1"), ("roomsecret", "cauldronburn")]);
    has(&sent[0], &["to='wiccarocks@localhost/laptop'", "unavailable", "'322'"]);
    refused(&stage.enters(SECOND, "secondwitch"), "registration-required");
    stage.administers(OWNER, "<item jid='wiccarocks@localhost' affiliation='member'/>");
    refused(&stage.enters(SECOND, "secondwitch"), "not-authorized");
    let with = |password: &str| {
        let x = ENTER.replace("/>", &format!("><password>{password}</password></x>"));
        format!("<presence to='coven@rooms.localhost/secondwitch'>{x}</presence>")
    };
    refused(&stage.sends(SECOND, &with("wrong")), "not-authorized");
    assert_eq!(stage.sends(SECOND, &with("cauldronburn")).len(), 4);
    let sent = stage.administers(OWNER, "<item jid='wiccarocks@localhost' affiliation='none'/>");
    has(&sent[0], &["to='wiccarocks@localhost/laptop'", "unavailable", "'321'"]);
}

#[test]
fn in_a_moderated_room_a_newcomer_has_no_voice_and_a_member_has() {
    let mut stage = Stage::open();
    stage.configures(&[("moderatedroom", "1")]);
    stage.enters(SECOND, "secondwitch");
    refused(&stage.says(SECOND, "Hi"), "forbidden");
    stage.administers(OWNER, "<item nick='secondwitch' affiliation='member'/>");
    assert_eq!(stage.says(SECOND, "Hi").len(), 2);
}

#[test]
fn an_occupant_invites_and_the_invited_one_declines_once() {
    let mut stage = Stage::open();
    let x = |inner: &str| {
        format!(
            "<message to='coven@rooms.localhost'><x xmlns='http://jabber.org/protocol/muc#user'>{inner}</x></message>"
        )
    };
    stage.configures(&[("membersonly", "1"), ("roomsecret", "burn")]);
    let sent = stage.sends(OWNER, &x("<invite to='hecate@localhost'><reason>Hey</reason></invite>"));
    has(
        &sent[0],
        &[
            "from='coven@rooms.localhost' to='hecate@localhost'",
            "<invite from='coven@rooms.localhost/firstwitch'><reason>Hey</reason>",
            "<password>burn</password>",
        ],
    );
    assert_eq!(stage.room.affiliation(&"hecate@localhost".parse().unwrap()), Affiliation::Member);
    refused(&stage.sends(SECOND, &x("<decline to='crone1@localhost'/>")), "item-not-found");
    let decline = x("<decline to='anybody@localhost'><reason>busy</reason></decline>");
    let sent = stage.sends("hecate@localhost/broom", &decline);
    has(&sent[0], &["to='crone1@localhost'", "<decline from='hecate@localhost'><reason>busy</reason></decline>"]);
    refused(&stage.sends("hecate@localhost/broom", &decline), "item-not-found");
    refused(&stage.sends(OWNER, &x("<invite/>")), "jid-malformed");
    refused(&stage.sends(SECOND, &x("<invite to='hecate@localhost'/>")), "not-acceptable");
}

#[test]
fn requests_between_occupants_pass_without_their_addresses_and_a_self_ping_is_answered() {
    let mut stage = Stage::open();
    let ping = |nick: &str| {
        format!("<iq to='coven@rooms.localhost/{nick}' type='get' id='s2c1'><ping xmlns='urn:xmpp:ping'/></iq>")
    };
    refused(&stage.sends(SECOND, &ping("secondwitch")), "not-acceptable");
    stage.enters(SECOND, "secondwitch");
    has(
        &stage.sends(SECOND, &ping("secondwitch"))[0],
        &["type='result'", "to='wiccarocks@localhost/laptop'", "id='s2c1'"],
    );
    refused(&stage.sends(SECOND, &ping("oldnick")), "item-not-found");
    let sent = stage.sends(SECOND, &ping("firstwitch"));
    let id = stage.id;
    has(
        &sent[0],
        &["from='coven@rooms.localhost/secondwitch'", "to='crone1@localhost/desktop'", &format!("id='{id}'")],
    );
    let answer = format!("<iq to='coven@rooms.localhost/secondwitch' type='result' id='{id}'/>");
    assert!(stage.sends(THIRD, &answer).is_empty(), "only who was asked answers");
    let sent = stage.sends(OWNER, &answer);
    has(
        &sent[0],
        &["from='coven@rooms.localhost/firstwitch'", "to='wiccarocks@localhost/laptop'", "type='result'", "id='s2c1'"],
    );
    assert!(stage.sends(OWNER, &answer).is_empty(), "once");
    let card = "<iq to='coven@rooms.localhost/firstwitch' type='get' id='v'><vCard xmlns='vcard-temp'/></iq>";
    has(&stage.sends(SECOND, card)[0], &["to='crone1@localhost'"]);
    refused(&stage.sends(THIRD, "<iq to='coven@rooms.localhost/firstwitch' type='get' id='d'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>"), "bad-request");
}

#[test]
fn a_room_tells_what_it_is() {
    let mut stage = Stage::open();
    stage.configures(&[("roomname", "A Dark Cave"), ("roomdesc", "for witches"), ("moderatedroom", "1")]);
    let info = stage.asks(THIRD, "get", "disco#info", "").remove(0);
    has(
        &info,
        &[
            "name='A Dark Cave'",
            "category='conference'",
            "muc_moderated",
            "muc_hidden",
            "muc_temporary",
            "muc_open",
            "muc_unsecured",
            "muc_semianonymous",
            "muc#stable_id",
            "self-ping",
            "for witches",
            "muc#roominfo_occupants",
        ],
    );
    has(&stage.asks(OWNER, "get", "disco#items", "")[0], &["jid='coven@rooms.localhost/firstwitch'"]);
    assert!(!stage.asks(THIRD, "get", "disco#items", "")[0].contains("<item"));
    for (node, condition) in
        [("http://jabber.org/protocol/muc#traffic", "service-unavailable"), ("other", "item-not-found")]
    {
        let xml = format!(
            "<iq to='coven@rooms.localhost' type='get' id='t'><query xmlns='http://jabber.org/protocol/disco#info' node='{node}'/></iq>"
        );
        refused(&stage.sends(THIRD, &xml), condition);
    }
}

#[test]
fn a_destroyed_room_names_another_one() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    let order = "<destroy jid='heath@rooms.localhost'><reason>Macbeth doth come.</reason></destroy>";
    refused(&stage.asks(SECOND, "set", "muc#owner", order), "forbidden");
    let sent = stage.asks(OWNER, "set", "muc#owner", order);
    for (text, to) in sent.iter().zip([OWNER, SECOND]) {
        has(
            text,
            &[
                &format!("to='{to}'"),
                "unavailable",
                "<destroy jid='heath@rooms.localhost'><reason>Macbeth doth come.</reason></destroy>",
            ],
        );
    }
    has(&sent[2], &["type='result'"]);
    assert!(stage.room.is_over());
}

#[test]
fn a_session_that_bounces_is_gone_and_one_that_does_not_want_a_message_is_not() {
    let mut stage = Stage::open();
    stage.enters(SECOND, "secondwitch");
    let error = |condition: &str| {
        format!(
            "<message to='coven@rooms.localhost/firstwitch' type='error'><error type='cancel'><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
        )
    };
    for harmless in ["service-unavailable", "feature-not-implemented", "not-acceptable"] {
        assert!(stage.sends(SECOND, &error(harmless)).is_empty());
    }
    assert!(stage.sends(THIRD, &error("gone")).is_empty());
    let sent = stage.sends(SECOND, &error("recipient-unavailable"));
    has(&sent[0], &["to='wiccarocks@localhost/laptop'", "unavailable", "'333'", "'110'", "role='none'"]);
    has(&sent[1], &["to='crone1@localhost/desktop'", "unavailable", "'333'"]);
    assert_eq!(stage.room.occupants.len(), 1);
}

#[test]
fn everything_is_bounded() {
    let limits = Limits { occupants: 3, nick_bytes: 10, presence_bytes: 200, affiliations: 3, ..Limits::default() };
    let mut stage = Stage::new(limits);
    stage.enters(OWNER, "firstwitch");
    stage.configures(&[]);
    refused(&stage.enters(SECOND, "elevenbytes"), "jid-malformed");
    refused(&stage.sends(SECOND, &format!("<presence to='coven@rooms.localhost'>{ENTER}</presence>")), "jid-malformed");
    let big = format!("<presence to='coven@rooms.localhost/w'>{ENTER}<status>{}</status></presence>", "x".repeat(200));
    refused(&stage.sends(SECOND, &big), "policy-violation");
    stage.enters(SECOND, "2");
    stage.enters(THIRD, "3");
    refused(&stage.enters("nurse@localhost/n", "4"), "service-unavailable");
    stage.administers(OWNER, "<item jid='nurse@localhost' affiliation='admin'/>");
    assert!(stage.enters("nurse@localhost/n", "4").len() > 1, "an admin gets in");
    stage.administers(OWNER, "<item jid='a@localhost' affiliation='member'/>");
    refused(&stage.administers(OWNER, "<item jid='b@localhost' affiliation='member'/>"), "resource-constraint");
}

#[test]
fn a_name_alone_inherits_nothing() {
    let mut stage = Stage::open();
    stage.configures(&[("persistentroom", "1")]);
    stage.administers(
        OWNER,
        "<item jid='nurse@localhost' affiliation='admin'/><item jid='hag66@localhost' affiliation='outcast'/>",
    );
    let (nurse, hag) = ("nurse@localhost".parse().unwrap(), "hag66@localhost".parse().unwrap());
    assert_eq!(stage.room.forget_namesake(&nurse, NOW), None, "made before");
    assert!(stage.room.forget_namesake(&nurse, NOW + 1).is_some(), "and its row goes");
    assert_eq!(stage.room.affiliation(&nurse), Affiliation::None);
    assert_eq!(stage.room.forget_namesake(&hag, NOW + 1), None, "a banned name stays banned");
}

/// What is saved, saved; and the room as it is read then.
async fn reloaded(stage: &mut Stage, store: &SharedStore) -> Option<Room> {
    let jid = stage.room.jid.clone();
    store.commit(&kept::owner(&jid), std::mem::take(&mut stage.ops)).await.unwrap();
    kept::load(store, &jid, &Limits::default()).await.unwrap()
}

#[tokio::test]
async fn a_persistent_room_is_read_as_it_was_left() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let mut stage = Stage::open();
    stage.says(OWNER, "not kept");
    assert!(reloaded(&mut stage, &store).await.is_none(), "a temporary room saves nothing");
    stage.configures(&[("persistentroom", "1"), ("roomname", "Cave")]);
    stage.administers(
        OWNER,
        "<item jid='hag66@localhost' affiliation='outcast'/><item jid='nurse@localhost' affiliation='member'/>",
    );
    stage.administers(OWNER, "<item jid='nurse@localhost' affiliation='none'/>");
    stage.sends(OWNER, "<message to='coven@rooms.localhost' type='groupchat'><subject>Spells</subject></message>");
    stage.says(OWNER, "kept");
    let room = reloaded(&mut stage, &store).await.unwrap();
    assert_eq!((&room.config, &room.subject), (&stage.room.config, &stage.room.subject));
    assert_eq!((&room.affiliations, &room.creator), (&stage.room.affiliations, &stage.room.creator));
    let before: Vec<_> = room.history.told(&Default::default()).map(|line| line.to_bytes()).collect();
    assert_eq!(before.len(), 1);
    has(
        std::str::from_utf8(&before[0]).unwrap(),
        &["kept", "<delay ", "from='coven@rooms.localhost/firstwitch'", "stanza-id"],
    );
    assert!(!room.is_over() && room.occupants.is_empty());
    stage.configures(&[("persistentroom", "0")]);
    assert!(reloaded(&mut stage, &store).await.is_none(), "all rows are gone");
}

/// What anybody may try, in any order.
fn tries() -> impl Strategy<Value = (usize, usize, String)> {
    let stanza = prop_oneof![
        Just(format!("<presence to='ROOM/NICK'>{ENTER}</presence>")),
        Just("<presence to='ROOM/NICK'/>".to_owned()),
        Just("<presence to='ROOM/NICK' type='unavailable'/>".to_owned()),
        Just("<message to='ROOM' type='groupchat'><body>x</body></message>".to_owned()),
        Just("<message to='ROOM/NICK' type='error'><error type='cancel'><gone xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>".to_owned()),
        "(none|visitor|participant|moderator)".prop_map(|role| format!(
            "<iq to='ROOM' type='set' id='r'><query xmlns='http://jabber.org/protocol/muc#admin'><item nick='NICK' role='{role}'/></query></iq>"
        )),
        "(outcast|none|member|admin|owner)".prop_map(|affiliation| format!(
            "<iq to='ROOM' type='set' id='a'><query xmlns='http://jabber.org/protocol/muc#admin'><item jid='NICK@localhost' affiliation='{affiliation}'/></query></iq>"
        )),
        ("(membersonly|moderatedroom|persistentroom)", 0..2).prop_map(|(option, on)| format!(
            "<iq to='ROOM' type='set' id='c'><query xmlns='http://jabber.org/protocol/muc#owner'><x xmlns='jabber:x:data' type='submit'><field var='muc#roomconfig_{option}'><value>{on}</value></field></x></query></iq>"
        )),
    ];
    (0..8_usize, 0..4_usize, stanza)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_tried_a_room_stays_whole(tries in proptest::collection::vec(tries(), 1..80)) {
        let mut stage = Stage::new(Limits::default());
        let store: SharedStore = Arc::new(MemoryStore::default());
        stage.enters("0@localhost/0", "0");
        for (who, nick, stanza) in tries {
            let from = format!("{}@localhost/{}", who / 2, who % 2);
            let xml = stanza.replace("ROOM", "coven@rooms.localhost").replace("NICK", &nick.to_string());
            let sent = stage.sends(&from, &xml);
            prop_assert!(sent.iter().all(|text| Stanza::parse(text.as_bytes()).is_ok_and(|s| s.head.to.is_some())));
            let room = &stage.room;
            let mut sessions: Vec<&Jid> = room.everybody().collect();
            sessions.sort();
            prop_assert!(sessions.windows(2).all(|pair| pair[0] != pair[1]));
            for occupant in &room.occupants {
                prop_assert!(!occupant.sessions.is_empty() && occupant.role > Role::None);
                prop_assert!(occupant.sessions.iter().all(|session| session.jid.to_bare() == occupant.user));
                let affiliation = room.affiliation(&occupant.user);
                prop_assert!(affiliation != Affiliation::Outcast);
                prop_assert!(affiliation >= Affiliation::Member || !room.config.members_only);
                prop_assert!(affiliation < Affiliation::Admin || occupant.role == Role::Moderator);
            }
            if room.is_over() {
                break;
            }
        }
        if stage.room.config.persistent {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(reloaded(&mut stage, &store)).unwrap();
            prop_assert_eq!(&read.affiliations, &stage.room.affiliations);
            prop_assert_eq!(&read.config, &stage.room.config);
        }
    }
}
