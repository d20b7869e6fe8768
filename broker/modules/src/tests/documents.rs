//! The documents that are generated from what modules register: `broker/docs/xeps.md` and `broker/docs/tavi.doap`
//! (XEP-0453). `cargo xtask doap` writes them; here they are compared.

use super::world::World;
use std::{fmt::Write, path::PathBuf};
use tavi_core::hooks::Xep;

/// With this in the environment the files are written instead of compared.
const WRITE: &str = "TAVI_WRITE_DOCUMENTS";

#[tokio::test]
async fn the_documents_tell_what_is_registered() {
    let xeps = World::new().await.node.router.registry().xeps();
    for (file, text) in [("xeps.md", table(&xeps)), ("tavi.doap", doap(&xeps))] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "broker/docs/{file} is not what modules register: run `cargo xtask doap`");
    }
}

fn table(xeps: &[Xep]) -> String {
    let mut text = String::from(
        "# Extensions of XMPP\n\nGenerated from what the modules register: `cargo xtask doap` writes this file, the tests \
         compare it.\n\n| XEP | title | version | module |\n|---|---|---|---|\n",
    );
    for Xep { number, name, version, module } in xeps {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| [{number:04}](https://xmpp.org/extensions/xep-{number:04}.html) | {name} | {version} | `{module}` |"
        );
    }
    text
}

/// XEP-0453 §3.
fn doap(xeps: &[Xep]) -> String {
    let mut text = String::from(
        "<?xml version='1.0' encoding='UTF-8'?>\n\
         <rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://usefulinc.com/ns/doap#' \
         xmlns:xmpp='https://linkmauve.fr/ns/xmpp-doap#'>\n  <Project>\n    <name>Tavi</name>\n    \
         <shortdesc xml:lang='en'>A messaging broker for people, bots and things</shortdesc>\n    \
         <programming-language>Rust</programming-language>\n    <os>Linux</os>\n    \
         <category rdf:resource='https://linkmauve.fr/ns/xmpp-doap#category-server'/>\n",
    );
    for rfc in [6120, 6121, 7622, 7590] {
        let _ = writeln!(text, "    <implements rdf:resource='https://xmpp.org/rfcs/rfc{rfc}.html'/>");
    }
    for Xep { number, version, .. } in xeps {
        let _ = write!(
            text,
            "    <implements>\n      <xmpp:SupportedXep>\n        \
             <xmpp:xep rdf:resource='https://xmpp.org/extensions/xep-{number:04}.html'/>\n        \
             <xmpp:version>{version}</xmpp:version>\n      </xmpp:SupportedXep>\n    </implements>\n"
        );
    }
    text.push_str("  </Project>\n</rdf:RDF>\n");
    text
}
