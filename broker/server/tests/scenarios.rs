//! The end-to-end tests, against the real program: each scenario file is played, the floods, and what an operator does.

#![allow(clippy::print_stdout, reason = "the floods tell what they measured")]

mod floods;
mod resumption;
mod sessions;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const PLAYED: &[&str] = &[$(stringify!($name)),*];

        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let file = folder().join(concat!(stringify!($name), ".scn"));
                if let Err(failure) = tavi_testkit::scenario::play(&file).await {
                    panic!("{failure}");
                }
            }
        )*
    };
}

scenarios! {
    chat
    carbons
    mqtt_and_pubsub
    coap_and_the_others
    permissions
    bot
    killed_and_back
    wrong_passwords
    malformed_xml
    malformed_mqtt
    malformed_coap
    too_large
}

#[test]
fn every_file_is_played() {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let names: BTreeSet<String> = files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, PLAYED.iter().map(ToString::to_string).collect());
}
