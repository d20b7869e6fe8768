//! Which of several values counts, also when one comes late; who waits for one, who pays for it, and when it goes.

use super::*;

fn value(world: &World) -> Option<String> {
    let value = world.topics.value(&who("romeo"), "u/romeo/a").unwrap();
    value.map(|value| String::from_utf8_lossy(&value.payload).into_owned())
}

/// A publication that was begun under an id drawn earlier, as after a restart.
async fn comes_late(world: &World, id: u64, draft: Draft) {
    let draft = Draft { id: Some(id), ..draft };
    world.topics.publish(&who("romeo"), draft).unwrap().complete().await.unwrap();
}

#[tokio::test]
async fn the_newer_of_what_is_kept_and_what_passed_is_the_value_whichever_landed_last() {
    let world = world().await;
    let late = world.topics.ids.next(NOW);
    world.publish("romeo", "u/romeo/a", "kept", true).await.unwrap();
    // Nobody knows any more what passed last.
    world.topics.places.forget_unused();
    let passing = |value: &'static str| Draft { retain: false, ..retained(value) };
    comes_late(&world, late, passing("late")).await;
    assert_eq!(value(&world), Some("kept".into()));
    world.publish("romeo", "u/romeo/a", "passing", false).await.unwrap();
    assert_eq!(value(&world), Some("passing".into()));
}

#[tokio::test]
async fn a_list_of_two_filters_ends_where_the_first_of_them_stopped() {
    let world = world().await;
    for n in 0..1_100 {
        publish_passing(&world, &format!("u/romeo/{n:04}")).await;
    }
    world.publish("romeo", "u/romeo/z", "v", true).await.unwrap();
    world.publish("tybalt", "u/tybalt/a", "v", true).await.unwrap();
    world.grant("romeo@localhost", "retrieve", "u/tybalt/a").await;
    world.clock.advance(2_000);
    let listing = world.topics.listed(&who("romeo"), None, 10).unwrap();
    assert!(listing.values.is_empty() && listing.next.is_some(), "behind the stop there may be others of the filter");
    let whole = world.topics.listed_whole(&who("romeo"), None, 10).await.unwrap();
    let names: Vec<_> = whole.values.iter().map(|value| &*value.topic).collect();
    assert_eq!((names, whole.next), (vec!["u/romeo/z", "u/tybalt/a"], None));
}

#[tokio::test]
async fn whoever_takes_a_value_over_pays_for_all_of_it() {
    let world = world().await;
    world.topics.set_quota(Quota { topics: 10, bytes: 60 });
    tidy_all(&mut Tidy::new(&world.topics)).await;
    world.grant("juliet@localhost", "publish", "u/romeo/#").await;
    world.publish("romeo", "u/romeo/a", "0123456789012345678901234567890", true).await.unwrap();
    world.publish("juliet", "u/juliet/a", "01234567890123456789", true).await.unwrap();
    let refused = world.publish("juliet", "u/romeo/a", "012345678901234567890123456789", true).await.unwrap_err();
    assert!(refused.to_string().contains("retained_bytes"), "{refused}");
    world.publish("juliet", "u/romeo/a", "0123456789", true).await.unwrap();
    assert_eq!((world.topics.kept_by(&who("romeo")), world.topics.kept_by(&who("juliet"))), ((0, 0), (2, 30 + 19)));
}

#[tokio::test]
async fn a_fresh_mark_of_a_deletion_keeps_an_older_value_away() {
    let world = world().await;
    let mut tidy = Tidy::new(&world.topics);
    world.clock.advance(20 * 60_000);
    let late = world.topics.ids.next(NOW + 20 * 60_000);
    world.publish("romeo", "u/romeo/a", "v", true).await.unwrap();
    let clear = Draft { change: Change::Clear, ..retained("") };
    world.topics.publish(&who("romeo"), clear).unwrap().complete().await.unwrap();
    world.clock.advance(60_000);
    tidy_all(&mut tidy).await;
    world.topics.places.forget_unused();
    comes_late(&world, late, retained("late")).await;
    let world = reopen(world.store).await;
    assert_eq!(world.topics.counts().1, 0, "what is older than the deletion does not come back");
}

#[tokio::test]
async fn an_expired_value_that_somebody_met_goes_with_the_next_step_and_few_are_remembered() {
    let world = world().await;
    for n in 0..1_300 {
        publish_passing(&world, &format!("u/romeo/{n:04}")).await;
    }
    let mut tidy = Tidy::new(&world.topics);
    world.clock.advance(2_000);
    let is_there = |topic: &str| world.topics.read_kept(topic).unwrap().is_some();
    assert_eq!(pull(&mut world.topics.read_retained("u/romeo/1299")), Poll::Ready(None));
    tidy.step().await.unwrap();
    // The round through all values has not come so far.
    assert!(!is_there("u/romeo/1299") && is_there("u/romeo/1298"));
    let listing = world.topics.listed_whole(&who("romeo"), None, 10).await.unwrap();
    assert!(listing.values.is_empty());
    assert_eq!(world.topics.met.lock().len(), 1_024);
}

#[tokio::test]
async fn a_page_that_was_read_before_its_topic_was_forgotten_is_not_believed() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "1", true).await.unwrap();
    world.publish("romeo", "u/romeo/b", "2", true).await.unwrap();
    let (reader, handle) = world.reader("romeo", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("1".into())), "the page has both");
    world.publish("romeo", "u/romeo/b", "3", true).await.unwrap();
    world.topics.places.forget_unused();
    assert_eq!(*reader.seen.lock(), ["u/romeo/b=3"]);
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("3".into())), "and nothing older behind it");
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
}

#[tokio::test]
async fn whoever_has_part_in_what_is_being_saved_does_not_wait_for_it() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "old", true).await.unwrap();
    let (reader, handle) = world.reader("romeo", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    world.store.hold();
    let saving = world.topics.publish(&who("romeo"), retained("new")).unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("old".into())));
    assert_eq!(pull(&mut joined.retained), Poll::Ready(None));
    world.store.release_all();
    saving.complete().await.unwrap();
    assert_eq!(*reader.seen.lock(), ["u/romeo/a=new"]);
}

#[tokio::test]
async fn nobody_waits_for_a_value_that_failed_behind_one_that_is_being_saved() {
    let world = world().await;
    world.publish("romeo", "u/romeo/a", "old", true).await.unwrap();
    let (_, durable) = world.reader("romeo", true);
    world.topics.join(&durable, "u/romeo/a", SubOptions::default()).unwrap();
    world.store.hold();
    let passing = Draft { retain: false, qos: Qos::AtLeastOnce, ..retained("passing") };
    let saving = world.topics.publish(&who("romeo"), passing).unwrap();
    let failing = world.topics.publish(&who("romeo"), retained("lost")).unwrap();
    assert!(world.store.release_at(0), "the row of the first");
    world.fail();
    world.store.release_all();
    assert!(failing.complete().await.is_err());
    let (_, handle) = world.reader("romeo", false);
    let mut joined = world.topics.join(&handle, "u/romeo/#", SubOptions::default()).unwrap();
    assert_eq!(pull(&mut joined.retained), Poll::Ready(Some("old".into())));
    saving.complete().await.unwrap();
}
