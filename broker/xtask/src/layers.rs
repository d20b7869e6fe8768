//! `cargo xtask layers`: who may know whom, checked against the dependency graph.

use std::collections::BTreeMap;

use crate::tree::{Dependency, Member, Tree};

/// The layers, lowest first: a folder and the folders that it may use.
/// The crates of one brace (`xmpp`, `mqtt`, …) never appear in each other's list: `server` introduces them.
const MAY_USE: &[(&str, &[&str])] = &[
    ("device-client/wire", &[]),
    ("device-client/client", &["device-client/wire"]),
    ("device-client/embassy", &["device-client/wire", "device-client/client"]),
    ("device-client/host", &["device-client/wire", "device-client/client"]),
    ("provisioning/enrol", &["device-client/wire"]),
    ("provisioning/cli", &["device-client/wire", "provisioning/enrol"]),
    ("broker/xmpp-proto", &[]),
    ("broker/turn", &[]),
    ("broker/store", &["device-client/wire", "broker/xmpp-proto"]),
    ("broker/store-kv", &["device-client/wire", "broker/xmpp-proto", "broker/store"]),
    ("broker/store-postgres", &["device-client/wire", "broker/xmpp-proto", "broker/store"]),
    ("broker/core", BELOW_CORE),
    ("broker/xmpp", CORE),
    ("broker/mqtt", CORE),
    ("broker/coap", CORE),
    ("broker/cluster", CORE),
    ("broker/push", CORE),
    ("bots/runtime", CORE),
    ("broker/modules", CORE_AND_ENROL),
    ("broker/web", CORE_AND_ENROL),
    ("bots/botd", BOTD),
    ("broker/server", SERVER),
    ("broker/load", &["broker/xmpp-proto", "device-client/wire", "device-client/client", "device-client/host"]),
    ("broker/testkit", &["broker/xmpp-proto", "device-client/wire", "provisioning/enrol"]),
    ("broker/xtask", &[]),
];

const BELOW_CORE: &[&str] = &["device-client/wire", "broker/xmpp-proto", "broker/store"];
const CORE: &[&str] = &["device-client/wire", "broker/xmpp-proto", "broker/store", "broker/core"];
const CORE_AND_ENROL: &[&str] =
    &["device-client/wire", "broker/xmpp-proto", "broker/store", "broker/core", "provisioning/enrol"];
const BOTD: &[&str] = &["device-client/wire", "broker/xmpp-proto", "broker/core", "bots/runtime"];
const SERVER: &[&str] = &[
    "provisioning/cli",
    "device-client/wire",
    "provisioning/enrol",
    "broker/xmpp-proto",
    "broker/turn",
    "broker/store",
    "broker/store-kv",
    "broker/store-postgres",
    "broker/core",
    "broker/xmpp",
    "broker/mqtt",
    "broker/coap",
    "broker/cluster",
    "broker/push",
    "broker/modules",
    "broker/web",
    "bots/runtime",
];

/// What tests may use besides: the test kit itself, and the memory and embedded stores.
const TESTS_MAY_USE: &[&str] = &["broker/testkit", "broker/store", "broker/store-kv"];

/// Foreign crates that only the named packages may use directly (`.deny.toml` says the same to cargo-deny).
const ONLY_UNDER: &[(&str, &[&str])] = &[
    ("sled", &["tavi-store-kv"]),
    ("fjall", &["tavi-store-kv"]),
    ("tokio-postgres", &["tavi-store-postgres"]),
    ("async-nats", &["tavi-cluster"]),
    ("rumqttd", &["tavi-mqtt"]),
    ("axum", &["rumqttd"]),
    ("coap-lite", &["tavi-coap"]),
    ("rhai", &["tavi-bots"]),
];

/// Prints each break. True if there is none.
pub fn check(tree: &Tree) -> anyhow::Result<bool> {
    let breaks = breaks(tree);
    for line in &breaks {
        println!("layer break: {line}");
    }
    Ok(breaks.is_empty())
}

/// Each break as a sentence.
pub fn breaks(tree: &Tree) -> Vec<String> {
    let folders: BTreeMap<&str, &str> = tree.members.iter().map(|m| (m.name.as_str(), m.folder.as_str())).collect();
    let own = tree.members.iter().flat_map(|member| member_breaks(member, &folders));
    own.chain(foreign_breaks(tree)).collect()
}

fn member_breaks(member: &Member, folders: &BTreeMap<&str, &str>) -> Vec<String> {
    let Some((_, allowed)) = MAY_USE.iter().find(|(folder, _)| *folder == member.folder) else {
        return vec![format!("{} has no line in broker/xtask/src/layers.rs", member.folder)];
    };
    let ours = member.dependencies.iter().filter_map(|dep| Some((dep, *folders.get(dep.name.as_str())?)));
    let broken = ours.filter(|(dep, folder)| !may_use(allowed, dep, folder));
    broken.map(|(_, folder)| format!("{} must not use {folder}", member.folder)).collect()
}

fn may_use(allowed: &[&str], dependency: &Dependency, folder: &str) -> bool {
    allowed.contains(&folder) || (dependency.dev && TESTS_MAY_USE.contains(&folder))
}

fn foreign_breaks(tree: &Tree) -> impl Iterator<Item = String> + '_ {
    ONLY_UNDER.iter().flat_map(move |(used, allowed)| {
        let users = tree.users.get(*used).into_iter().flatten();
        let broken = users.filter(|user| !allowed.contains(&user.as_str()));
        broken.map(move |user| format!("{user} must not use {used}: it belongs under {}", allowed.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn member(folder: &str, uses: &[(&str, bool)]) -> Member {
        let dependencies = uses.iter().map(|(name, dev)| Dependency { name: (*name).into(), dev: *dev }).collect();
        Member { name: format!("tavi-{}", folder.rsplit('/').next().unwrap()), folder: folder.into(), dependencies }
    }

    fn tree(members: Vec<Member>, users: &[(&str, &str)]) -> Tree {
        let users: HashMap<_, _> = users.iter().map(|(used, user)| ((*used).into(), vec![(*user).into()])).collect();
        Tree { root: ".".into(), target: "target".into(), members, users }
    }

    #[test]
    fn a_front_end_may_not_know_another() {
        let members = vec![member("broker/xmpp", &[("tavi-mqtt", false)]), member("broker/mqtt", &[])];
        assert_eq!(breaks(&tree(members, &[])), ["broker/xmpp must not use broker/mqtt"]);
    }

    #[test]
    fn a_front_end_may_know_the_core() {
        let members = vec![member("broker/xmpp", &[("tavi-core", false)]), member("broker/core", &[])];
        assert!(breaks(&tree(members, &[])).is_empty());
    }

    #[test]
    fn only_tests_may_use_the_test_kit() {
        let kit = || member("broker/testkit", &[]);
        let tested = member("broker/server", &[("tavi-testkit", true)]);
        assert!(breaks(&tree(vec![kit(), tested], &[])).is_empty());
        let shipped = member("broker/server", &[("tavi-testkit", false)]);
        assert_eq!(breaks(&tree(vec![kit(), shipped], &[])), ["broker/server must not use broker/testkit"]);
    }

    #[test]
    fn a_new_crate_needs_a_line_in_the_table() {
        assert_eq!(breaks(&tree(vec![member("broker/common", &[])], &[])).len(), 1);
    }

    #[test]
    fn an_engine_stays_under_its_store() {
        assert!(breaks(&tree(Vec::new(), &[("sled", "tavi-store-kv")])).is_empty());
        assert_eq!(breaks(&tree(Vec::new(), &[("sled", "tavi-core")])).len(), 1);
    }
}
