//! The bots folder: which scripts there are, and when it changes.

use crate::engine::MAX_SCRIPT;
use std::{
    collections::BTreeSet,
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

/// What the folders hold.
#[derive(Debug, Default)]
pub struct Scan {
    /// The scripts that could be read.
    pub found: Vec<Found>,
    /// Bots whose file is there and cannot be used now: they go on as they are.
    pub unusable: BTreeSet<String>,
    /// Whether some folder could not be read to its end: then a bot that was not found may still be there.
    pub partial: bool,
    /// What the operator has to know.
    pub errors: Vec<LoadError>,
}

/// Reads all scripts of the folders. A folder that is not there has none.
pub fn scan(folders: &[PathBuf]) -> Scan {
    let mut scan = Scan::default();
    for folder in folders {
        scan.folder(folder);
    }
    scan
}

impl Scan {
    fn folder(&mut self, folder: &Path) {
        match scripts(folder) {
            Ok(paths) => paths.iter().for_each(|path| self.script(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.partial = true;
                self.errors.push(LoadError::Read(folder.into(), error));
            }
        }
    }

    fn script(&mut self, path: &Path) {
        match read(path) {
            Ok(bot) if self.found.iter().any(|found| found.name == bot.name) => {
                self.errors.push(LoadError::Twice(path.into()));
            }
            Ok(bot) => self.found.push(bot),
            Err(error) => {
                self.unusable.extend(name(path));
                self.errors.push(error);
            }
        }
    }
}

fn scripts(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "rhai"));
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> Option<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.filter(|name| is_name(name)).map(str::to_owned)
}

fn read(path: &Path) -> Result<Found, LoadError> {
    let name = name(path).ok_or_else(|| LoadError::Name(path.into()))?;
    let failed = |error| LoadError::Read(path.into(), error);
    if fs::metadata(path).map_err(failed)?.len() > MAX_SCRIPT as u64 {
        return Err(LoadError::Large(path.into()));
    }
    let source = fs::read_to_string(path).map_err(failed)?;
    Ok(Found { name, source })
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
        let Scan { mut found, unusable, partial, errors } = scan(&[one.path().into(), two.path().into(), missing]);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!((unusable, partial), (BTreeSet::from(["large".to_owned()]), false));
        let found: Vec<_> = found.iter().map(|f| (f.name.as_str(), f.source.as_str())).collect();
        assert_eq!(found, [("door-2", "3"), ("lamp", "1")]);
        assert!(matches!(errors[..], [LoadError::Name(_), LoadError::Large(_), LoadError::Twice(_)]), "{errors:?}");
    }

    #[test]
    fn what_cannot_be_read_is_still_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("latin.rhai"), b"// caf\xe9").unwrap();
        let file = folder.path().join("no-folder");
        fs::write(&file, "").unwrap();
        let scan = scan(&[folder.path().into(), file]);
        assert!(scan.found.is_empty() && scan.partial);
        assert_eq!(scan.unusable, BTreeSet::from(["latin".to_owned()]));
        assert!(matches!(scan.errors[..], [LoadError::Read(..), LoadError::Read(..)]), "{:?}", scan.errors);
    }
}
