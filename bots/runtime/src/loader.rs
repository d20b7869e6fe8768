//! The bots folder: which scripts there are, and when it changes.

use crate::engine::MAX_SCRIPT;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The longest name of a bot.
const MAX_NAME: usize = 63;

/// A script in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The bot's name, `[a-z0-9-]+`.
    pub name: String,
    /// The script.
    pub source: String,
}

/// What is wrong with a file of the folder.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operator has to give it another name.
    #[error("{0:?}: a bot's file is called NAME.rhai, NAME of a-z, 0-9 and -, at most {MAX_NAME} characters")]
    Name(PathBuf),
    /// The file cannot be read.
    #[error("{0:?}: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// The file is longer than a script may be.
    #[error("{0:?}: a script has at most 256 KiB")]
    Large(PathBuf),
    /// Two folders have a bot of this name; the first counts.
    #[error("{0:?}: there is a bot of this name in another folder already")]
    Twice(PathBuf),
}

/// Reads all scripts of the folders. A folder that is not there has none.
pub fn scan(folders: &[PathBuf]) -> (Vec<Found>, Vec<LoadError>) {
    let (mut found, mut errors) = (BTreeMap::new(), Vec::new());
    for path in folders.iter().flat_map(|folder| scripts(folder, &mut errors)).collect::<Vec<_>>() {
        match read(&path) {
            Ok(bot) if found.contains_key(&bot.name) => errors.push(LoadError::Twice(path)),
            Ok(bot) => drop(found.insert(bot.name.clone(), bot)),
            Err(error) => errors.push(error),
        }
    }
    (found.into_values().collect(), errors)
}

fn scripts(folder: &Path, errors: &mut Vec<LoadError>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            errors.push(LoadError::Read(folder.into(), error));
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == "rhai")).collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Found, LoadError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let name = stem.filter(|name| is_name(name)).ok_or_else(|| LoadError::Name(path.into()))?;
    let failed = |error| LoadError::Read(path.into(), error);
    if fs::metadata(path).map_err(failed)?.len() > MAX_SCRIPT as u64 {
        return Err(LoadError::Large(path.into()));
    }
    let source = fs::read_to_string(path).map_err(failed)?;
    Ok(Found { name: name.into(), source })
}

fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_found_by_their_names() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(one.path().join("lamp.rhai"), "1").unwrap();
        fs::write(one.path().join("notes.txt"), "").unwrap();
        fs::write(one.path().join("Bad Name.rhai"), "").unwrap();
        fs::write(one.path().join("large.rhai"), "x".repeat(MAX_SCRIPT + 1)).unwrap();
        fs::write(two.path().join("lamp.rhai"), "2").unwrap();
        fs::write(two.path().join("door-2.rhai"), "3").unwrap();
        let missing = one.path().join("none");
        let (found, errors) = scan(&[one.path().into(), two.path().into(), missing]);
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.source.as_str())).collect();
        assert_eq!(found, [("door-2", "3"), ("lamp", "1")]);
        assert!(matches!(errors[..], [LoadError::Name(_), LoadError::Large(_), LoadError::Twice(_)]), "{errors:?}");
    }
}
