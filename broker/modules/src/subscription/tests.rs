//! The table of RFC 6121 Appendix A, and dialogues of two people.

use super::{Change, State, Subscriptions, Way, ns};
use crate::tests::world::World;

/// The states in the order of Appendix A.1.
const STATES: [&str; 9] = ["none", "none+out", "none+in", "none+out+in", "to", "to+in", "from", "from+out", "both"];

fn state(name: &str) -> State {
    let mut words = name.split('+');
    let subscription = words.next().unwrap_or_default();
    let mut state = State {
        to: matches!(subscription, "to" | "both"),
        from: matches!(subscription, "from" | "both"),
        ..State::default()
    };
    for word in words {
        match word {
            "out" => state.pending_out = true,
            _ => state.pending_in = true,
        }
    }
    state
}

/// One row for each change: the next state for each of [`STATES`], in front `!` if the stanza goes no further.
const TABLE: [(Way, Change, [&str; 9]); 8] = {
    use {Change::*, Way::*};
    [
        // A.2.1
        (
            Out,
            Subscribe,
            ["none+out", "none+out", "none+out+in", "none+out+in", "to", "to+in", "from+out", "from+out", "both"],
        ),
        // A.2.2
        (Out, Unsubscribe, ["none", "none", "none+in", "none+in", "none", "none+in", "from", "from", "from"]),
        // A.2.3
        (Out, Subscribed, ["!none", "!none+out", "from", "from+out", "!to", "both", "!from", "!from+out", "!both"]),
        // A.2.4
        (Out, Unsubscribed, ["!none", "!none+out", "none", "none+out", "!to", "to", "none", "none+out", "to"]),
        // A.3.1
        (
            In,
            Subscribe,
            ["none+in", "none+out+in", "!none+in", "!none+out+in", "to+in", "!to+in", "!from", "!from+out", "!both"],
        ),
        // A.3.2
        (In, Unsubscribe, ["!none", "!none+out", "none", "none+out", "!to", "to", "none", "none+out", "to"]),
        // A.3.3
        (In, Subscribed, ["!none", "to", "!none+in", "to+in", "!to", "!to+in", "!from", "both", "!both"]),
        // A.3.4
        (In, Unsubscribed, ["!none", "none", "!none+in", "none+in", "none", "none+in", "!from", "from", "from"]),
    ]
};

#[test]
fn every_state_goes_where_appendix_a_says() {
    for (way, change, row) in TABLE {
        for (before, wanted) in STATES.iter().zip(row) {
            let (next, passes) = state(before).step(way, change);
            let (stays, wanted) = wanted.strip_prefix('!').map_or((false, wanted), |w| (true, w));
            assert_eq!((next, passes), (state(wanted), !stays), "{way:?} {change:?} in {before}");
        }
    }
}

const ROSTER: &str = "<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>";

#[tokio::test]
async fn two_people_come_to_see_each_other() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    romeo.sends(ROSTER).await;
    juliet.sends(ROSTER).await;
    romeo.skip();
    juliet.skip();

    romeo.sends("<presence to='juliet@localhost' type='subscribe'><status>It is I</status></presence>").await;
    romeo.sees_push("<item jid='juliet@localhost' subscription='none' ask='subscribe'/>");
    juliet.sees(
        "<presence from='romeo@localhost' to='juliet@localhost' type='subscribe'><status>It is I</status></presence>",
    );
    juliet.sees_nothing();

    juliet.sends("<presence to='romeo@localhost' type='subscribed'/>").await;
    juliet.sees_push("<item jid='romeo@localhost' subscription='from'/>");
    romeo.sees("<presence from='juliet@localhost' type='subscribed'/>");
    romeo.sees_push("<item jid='juliet@localhost' subscription='to'/>");
    romeo.sees("<presence from='juliet@localhost/balcony'/>");
    romeo.sees_nothing();

    juliet.sends("<presence to='romeo@localhost' type='subscribe'/>").await;
    romeo.sees("<presence from='juliet@localhost' type='subscribe'/>");
    romeo.sends("<presence to='juliet@localhost' type='subscribed'/>").await;
    romeo.sees_push("<item jid='juliet@localhost' subscription='both'/>");
    juliet.sees_push("<item jid='romeo@localhost' subscription='from' ask='subscribe'/>");
    juliet.sees("<presence from='romeo@localhost' type='subscribed'/>");
    juliet.sees_push("<item jid='romeo@localhost' subscription='both'/>");
    juliet.sees("<presence from='romeo@localhost/orchard'/>");

    // A server that lost its mind asks again: it is told that all is well.
    romeo.sends("<presence to='juliet@localhost' type='subscribe'/>").await;
    juliet.sees_nothing();
    romeo.sees_nothing();
}

#[tokio::test]
async fn a_request_waits_for_who_is_away_even_over_a_restart() {
    let world = World::new().await;
    world.account("juliet").await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sends("<presence to='juliet@localhost' type='subscribe'><status>Pray let me in</status></presence>").await;

    let world = world.restart().await;
    let mut juliet = world.bind("juliet/balcony").await;
    juliet.sends(ROSTER).await;
    juliet.sees("<iq type='result' id='roster'><query xmlns='jabber:iq:roster'/></iq>");
    juliet.sends("<presence/>").await;
    juliet.sees("<presence from='juliet@localhost/balcony'/>");
    juliet.sees("<presence from='romeo@localhost' type='subscribe'><status>Pray let me in</status></presence>");
    juliet.sees_nothing();

    juliet.sends("<presence to='romeo@localhost' type='unsubscribed'/>").await;
    juliet.sees_nothing();
    let world = world.restart().await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sees_nothing();
}

#[tokio::test]
async fn approval_beforehand_lets_in_at_once() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let mut juliet = world.online("juliet/balcony").await;
    juliet.sends(ROSTER).await;
    juliet.skip();
    juliet.sends("<presence to='romeo@localhost' type='subscribed'/>").await;
    juliet.sees_push("<item jid='romeo@localhost' subscription='none' approved='true'/>");
    romeo.sees_nothing();
    romeo.sends(ROSTER).await;
    romeo.skip();
    romeo.sends("<presence to='juliet@localhost' type='subscribe'/>").await;
    romeo.sees_push("<item jid='juliet@localhost' ask='subscribe'/>");
    juliet.sees_push("<item jid='romeo@localhost' subscription='from'/>");
    juliet.sees_nothing();
    romeo.sees("<presence from='juliet@localhost' type='subscribed'/>");
    romeo.sees_push("<item jid='juliet@localhost' subscription='to'/>");
    romeo.sees("<presence from='juliet@localhost/balcony'/>");
}

#[tokio::test]
async fn who_cancels_is_seen_to_go() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    juliet.sends("<presence to='romeo@localhost' type='unsubscribed'/>").await;
    juliet.sees_push("<item jid='romeo@localhost' subscription='to'/>");
    romeo.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    romeo.sees("<presence from='juliet@localhost' type='unsubscribed'/>");
    romeo.sees_push("<item jid='juliet@localhost' subscription='from'/>");

    juliet.sends("<presence to='romeo@localhost' type='unsubscribe'/>").await;
    juliet.sees_push("<item jid='romeo@localhost' subscription='none'/>");
    romeo.sees("<presence from='juliet@localhost' type='unsubscribe'/>");
    romeo.sees_push("<item jid='juliet@localhost' subscription='none'/>");
    juliet.sees("<presence from='romeo@localhost/orchard' type='unavailable'/>");
    juliet.sees_nothing();
}

#[tokio::test]
async fn removing_a_contact_ends_both_subscriptions() {
    let world = World::new().await;
    let (mut romeo, mut juliet) = world.friends().await;
    romeo.sends("<iq type='set' id='r'><query xmlns='jabber:iq:roster'><item jid='juliet@localhost' subscription='remove'/></query></iq>").await;
    juliet.sees("<presence from='romeo@localhost' type='unsubscribe'/>");
    juliet.sees_push("<item jid='romeo@localhost' subscription='to'/>");
    juliet.sees("<presence from='romeo@localhost' type='unsubscribed'/>");
    juliet.sees_push("<item jid='romeo@localhost' subscription='none'/>");
    juliet.sees("<presence from='romeo@localhost/orchard' type='unavailable'/>");
    juliet.sees_nothing();
    romeo.sees_push("<item jid='juliet@localhost' subscription='remove'/>");
    romeo.sees("<presence from='juliet@localhost/balcony' type='unavailable'/>");
    romeo.sees("<iq type='result' id='r'/>");
}

#[tokio::test]
async fn a_full_roster_takes_no_more_contacts() {
    let world = World::new().await;
    let mut romeo = world.online("romeo/orchard").await;
    let home = world.node.parts.homes.known(&romeo.jid().to_bare()).unwrap();
    for n in 0..crate::roster::MAX_CONTACTS {
        let jid = format!("c{n}@localhost").parse().unwrap();
        home.at_home(|state| crate::contacts::contacts_mut(state).entry(&jid).added = true);
    }
    for type_ in ["subscribe", "subscribed"] {
        romeo.sends(&format!("<presence to='juliet@localhost' type='{type_}'/>")).await;
        romeo.sees_error("resource-constraint");
    }
}

#[tokio::test]
async fn a_bot_lets_everybody_in_and_is_seen_as_available() {
    let world = World::new().await;
    let mut bot = world.bot("pump").await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sends("<presence to='pump@bots.localhost' type='subscribe'/>").await;
    romeo.skip();
    bot.sees_nothing();
    let (world, _) = (world.restart().await, bot.skip());
    let _bot = world.bot("pump").await;
    let mut romeo = world.online("romeo/orchard").await;
    romeo.sees("<presence from='pump@bots.localhost/bot'/>");
}

#[test]
fn approvals_beforehand_are_offered_after_login_only() {
    use tavi_core::{Registry, hooks::Stage};
    let mut registry = Registry::default();
    registry.stream_feature(std::sync::Arc::new(Subscriptions));
    assert!(registry.offers(Stage::BeforeLogin).is_empty());
    let names: Vec<_> = registry.offers(Stage::AfterLogin).iter().map(|offer| offer.ns().to_owned()).collect();
    assert_eq!(names, [ns::PRE_APPROVAL]);
}
