//! Dialogues with the access model.

use super::*;
use tavi_store::MemoryStore;

fn person(name: &str) -> Principal {
    Principal::Account(format!("{name}@localhost").parse().unwrap())
}

fn device() -> Principal {
    Principal::Device("abc@things.localhost".parse().unwrap())
}

async fn permit(grants: &[(&str, &str, &str)]) -> Permit {
    let permit = Permit::load(Arc::new(MemoryStore::default())).await.unwrap();
    for (n, (subject, actions, filter)) in grants.iter().enumerate() {
        permit.add(Grant::new(n as u64, subject, actions.parse().unwrap(), filter).unwrap()).await.unwrap();
    }
    permit
}

#[tokio::test]
async fn without_grants_everybody_has_only_their_own() {
    let permit = permit(&[]).await;
    assert!(permit.may(&device(), Action::Publish, "d/abc/up/t"));
    assert!(permit.may_filter(&device(), Action::Subscribe, "d/abc/cmd/#"));
    assert!(!permit.may(&device(), Action::Publish, "d/abc/state"), "only the broker writes it");
    assert!(permit.may(&device(), Action::Retrieve, "d/abc/state"));
    assert!(!permit.may(&device(), Action::Publish, "d/abcd/up/t"));
    assert!(!permit.may_filter(&device(), Action::Subscribe, "d/+/up/t"));
    assert!(permit.may(&person("romeo"), Action::Publish, "u/romeo/notes"));
    assert!(!permit.may(&person("romeo"), Action::Retrieve, "u/juliet/notes"));
    assert!(!permit.may(&Principal::Anon { loopback: true }, Action::Retrieve, "u/romeo/notes"));
}

#[tokio::test]
async fn grants_act_at_once_and_end_at_once() {
    let permit = permit(&[("@everyone", "retrieve,notify", "d/+/up/#")]).await;
    assert!(permit.may_filter(&person("romeo"), Action::Subscribe, "d/abc/up/+"));
    assert!(!permit.may_filter(&person("romeo"), Action::Subscribe, "d/#"));
    assert!(!permit.may(&person("romeo"), Action::Publish, "d/abc/up/t"));
    let before = permit.generation();
    let (removed, commit) = permit.remove(|grant| grant.id == 0);
    commit.await.unwrap();
    assert_eq!(removed.len(), 1);
    assert!(permit.generation() > before);
    assert!(!permit.may_filter(&person("romeo"), Action::Subscribe, "d/abc/up/+"));
}

#[tokio::test]
async fn nobody_can_be_granted_what_the_broker_writes() {
    let permit = permit(&[("@everyone", "publish,delete,create", "#"), ("@everyone", "publish", "$SYS/#")]).await;
    assert!(!permit.may(&person("romeo"), Action::Publish, "d/abc/state"));
    assert!(!permit.may(&person("romeo"), Action::Publish, "$SYS/load"));
    assert!(permit.may(&person("romeo"), Action::Publish, "d/abc/cmd/x"));
}

#[tokio::test]
async fn several_grants_together_may_cover_a_filter() {
    let permit = permit(&[("@everyone", "subscribe", "a"), ("@everyone", "subscribe", "a/+/#")]).await;
    assert!(permit.may_filter(&person("romeo"), Action::Subscribe, "a/#"));
    let half = self::permit(&[("@everyone", "subscribe", "a/b"), ("@everyone", "subscribe", "a/c")]).await;
    assert!(!half.may_filter(&person("romeo"), Action::Subscribe, "a/+"));
}

#[tokio::test]
async fn a_denial_beats_the_grants_of_its_subject_and_of_wider_ones() {
    let permit = permit(&[
        ("@everyone", "subscribe,retrieve", "site/#"),
        ("@everyone", "!subscribe", "site/+/secret"),
        ("romeo@localhost", "subscribe", "site/a/secret"),
        ("juliet@localhost", "!subscribe", "site/b/#"),
    ])
    .await;
    let may = |who: &str, topic: &str| permit.may(&person(who), Action::Subscribe, topic);
    assert!(may("paris", "site/a/open") && !may("paris", "site/a/secret"));
    assert!(may("romeo", "site/a/secret"), "the narrower grant beats the wider denial");
    assert!(!may("romeo", "site/b/secret"));
    assert!(!may("juliet", "site/b/open") && may("juliet", "site/a/open"));
    assert!(permit.may(&person("paris"), Action::Retrieve, "site/a/secret"), "another action");
    let may_filter = |who: &str, filter: &str| permit.may_filter(&person(who), Action::Subscribe, filter);
    assert!(may_filter("juliet", "site/#") && may_filter("paris", "site/+/secret/#"));
    assert!(!may_filter("juliet", "site/b/+"), "nothing is left of it");
    assert!(!may_filter("paris", "site/+/secret") && !may_filter("juliet", "#"));
}

#[tokio::test]
async fn a_subject_has_a_quota_and_is_told() {
    let permit = permit(&[("romeo@localhost", "publish", "a"), ("romeo@localhost", "publish", "b")]).await;
    permit.set_quota(2);
    let grant = |id, filter| Grant::new(id, "Romeo@localhost", "publish".parse().unwrap(), filter).unwrap();
    let refused = permit.add(grant(7, "c")).await.unwrap_err().to_string();
    assert!(refused.contains("2 grants") && refused.contains("grants_per_subject"), "{refused}");
    assert!(!permit.may(&person("romeo"), Action::Publish, "c"));
    permit.add(grant(8, "a")).await.unwrap();
    assert_eq!(permit.list(Some("romeo@localhost")).len(), 2, "the same rule twice is one");
    assert!(permit.room_for("juliet@localhost").is_ok());
}

#[tokio::test]
async fn grants_are_paged_removed_by_id_and_by_subject_and_read_again() {
    let store: SharedStore = Arc::new(MemoryStore::default());
    let permit = Permit::load(store.clone()).await.unwrap();
    for id in 1..=2_500u64 {
        let subject = format!("user{}@localhost", id % 2);
        permit.set_quota(10_000);
        let grant = Grant::new(id, &subject, "publish".parse().unwrap(), &format!("x/{id}")).unwrap();
        permit.add(grant).await.unwrap();
    }
    let ids = |page: Vec<Grant>| page.into_iter().map(|grant| grant.id).collect::<Vec<_>>();
    assert_eq!(ids(permit.page(2_497, 2)), [2_498, 2_499]);
    assert_eq!(permit.remove_id(2_499).0.unwrap().id, 2_499);
    assert!(permit.remove_id(2_499).0.is_none());
    let (removed, commit) = permit.remove_subject("user0@localhost");
    commit.await.unwrap();
    assert_eq!(removed.len(), 1_250);
    assert!(!permit.may(&person("user0"), Action::Publish, "x/2"));
    let again = Permit::load(store).await.unwrap();
    assert_eq!((again.list(None).len(), again.page(0, 9_999).len()), (1_249, 1_249));
    assert!(again.may(&person("user1"), Action::Publish, "x/1"));
}

#[test]
fn ones_own_topics_are_told_from_those_that_look_alike() {
    let odd = Principal::Account("a+%b@localhost".parse().unwrap());
    let own = |name: &str| is_own(&odd, name);
    assert!(own("u/a%2B%25b/x") && own("u/a%2B%25b") && own("u/a%2B%25b/#"));
    assert!(!own("u/a+%b/x") && !own("u/a%2B%25bc/x") && !own("u/+/x") && !own("u/#") && !own("d/a%2B%25b/x"));
    assert_eq!(escape_level("a+%b"), "a%2B%25b");
}

#[test]
fn a_refusal_names_the_grant_unless_the_name_is_made_for_a_shell() {
    let romeo = Principal::Account("romeo@localhost".parse().unwrap());
    let said = |filter| refusal(&romeo, Action::Subscribe, filter);
    assert!(said("home/#").ends_with("tavi-fleet grant add romeo@localhost subscribe 'home/#'"));
    assert_eq!(said("x';reboot;'"), r#"refused: romeo@localhost may not subscribe "x';reboot;'""#);
    assert_eq!(said("x\nINFO y"), r#"refused: romeo@localhost may not subscribe "x\nINFO y""#);
    assert!(refusal(&romeo, Action::Publish, "d/1/state").ends_with("only the broker writes it"));
}
