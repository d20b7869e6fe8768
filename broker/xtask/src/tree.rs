//! The workspace as cargo sees it: root, target folder, member packages and their dependencies.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The workspace.
pub struct Tree {
    /// Folder of the workspace's Cargo.toml.
    pub root: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
    /// The workspace's own packages, by folder.
    pub members: Vec<Member>,
    /// Every package of the dependency graph: name to the names of those that use it directly.
    pub users: HashMap<String, Vec<String>>,
}

/// One package of the workspace.
pub struct Member {
    /// Package name, `tavi-…`.
    pub name: String,
    /// Folder relative to the root, as `broker/core`.
    pub folder: String,
    /// Direct dependencies.
    pub dependencies: Vec<Dependency>,
}

/// One direct dependency as a Cargo.toml states it.
pub struct Dependency {
    /// Package name.
    pub name: String,
    /// True for a dev-dependency.
    pub dev: bool,
}

impl Tree {
    /// Asks cargo. Needs no network when Cargo.lock is complete and the crates are there.
    pub fn load() -> anyhow::Result<Self> {
        let output = Command::new(cargo()).args(["metadata", "--format-version", "1"]).output()?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let root = PathBuf::from(text(&metadata, "workspace_root")?);
        Ok(Self {
            target: text(&metadata, "target_directory")?.into(),
            members: members(&metadata, &root)?,
            users: users(&metadata),
            root,
        })
    }
}

/// The cargo that runs us, so that a toolchain override holds for what we start.
pub fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

fn text<'a>(value: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    value[key].as_str().with_context(|| format!("cargo metadata has no {key}"))
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn members(metadata: &Value, root: &Path) -> anyhow::Result<Vec<Member>> {
    let ids: Vec<&Value> = list(metadata, "workspace_members").collect();
    let own = list(metadata, "packages").filter(|package| ids.contains(&&package["id"]));
    let mut members = own.map(|package| member(package, root)).collect::<anyhow::Result<Vec<_>>>()?;
    members.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(members)
}

fn member(package: &Value, root: &Path) -> anyhow::Result<Member> {
    let manifest = Path::new(text(package, "manifest_path")?);
    let folder = manifest.parent().context("a manifest without a folder")?.strip_prefix(root)?;
    let dependencies = list(package, "dependencies").map(dependency).collect::<anyhow::Result<_>>()?;
    Ok(Member { name: text(package, "name")?.into(), folder: folder.display().to_string(), dependencies })
}

fn dependency(entry: &Value) -> anyhow::Result<Dependency> {
    Ok(Dependency { name: text(entry, "name")?.into(), dev: entry["kind"] == "dev" })
}

fn users(metadata: &Value) -> HashMap<String, Vec<String>> {
    let names: HashMap<&str, &str> =
        list(metadata, "packages").filter_map(|p| Some((p["id"].as_str()?, p["name"].as_str()?))).collect();
    let name = |id: &Value| id.as_str().and_then(|id| names.get(id)).map(ToString::to_string);
    let mut users: HashMap<String, Vec<String>> = HashMap::new();
    for node in list(&metadata["resolve"], "nodes") {
        let Some(user) = name(&node["id"]) else { continue };
        for used in list(node, "deps").filter_map(|dep| name(&dep["pkg"])) {
            users.entry(used).or_default().push(user.clone());
        }
    }
    users
}
