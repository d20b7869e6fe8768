//! `cargo xtask paths`: every file that broker/docs/paths.md names exists.

use std::path::Path;

use crate::tree::Tree;

/// The page that traces each path through the code, file by file.
const PAGE: &str = "broker/docs/paths.md";

/// Prints each name that leads nowhere. True if there is none.
pub fn check(tree: &Tree) -> anyhow::Result<bool> {
    let Ok(page) = std::fs::read_to_string(tree.root.join(PAGE)) else {
        println!("{PAGE} is gone");
        return Ok(false);
    };
    let gone: Vec<&str> = named_files(&page).filter(|name| !exists(&tree.root, name)).collect();
    for name in &gone {
        println!("{PAGE} names {name}, which does not exist");
    }
    Ok(gone.is_empty())
}

/// Names in backticks that end like a source file; what follows a colon or `#` is a place inside it.
fn named_files(page: &str) -> impl Iterator<Item = &str> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted.map(|name| name.split([':', '#']).next().unwrap_or(name)).filter(|name| is_file_name(name))
}

fn is_file_name(name: &str) -> bool {
    let kinds = [".rs", ".toml", ".md", ".py", ".scn", ".rhai"];
    name.contains('/') && !name.contains([' ', '*', '<']) && kinds.iter().any(|kind| name.ends_with(kind))
}

/// A name is relative to the root or, for short, to `broker/`.
fn exists(root: &Path, name: &str) -> bool {
    root.join(name).is_file() || root.join("broker").join(name).is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_files_among_the_quoted_words() {
        let page =
            "`broker/core/src/router.rs` has `route`, then `xmpp/src/session.rs:write`, `DATA/admin.sock`, `*/x.rs`.";
        let names: Vec<&str> = named_files(page).collect();
        assert_eq!(names, ["broker/core/src/router.rs", "xmpp/src/session.rs"]);
    }

    #[test]
    fn knows_a_file_that_exists_from_one_that_does_not() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(exists(root, "src/paths.rs"));
        assert!(!exists(root, "src/gone.rs"));
    }
}
