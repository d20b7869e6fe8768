//! A private key in a file: PKCS#8 version 1 in PEM (RFC 5958 §2, RFC 8410 §7), owner-only, never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use tavi_enrol::DeviceId;
use zeroize::Zeroizing;

use crate::output::Failure;

/// No key file is longer.
const MAX_FILE: u64 = 64 * 1024;

/// A file that was written just now; keep it, or remove it because nobody wants its key.
pub struct KeyFile(PathBuf);

impl KeyFile {
    /// Writes `ID.key` into the folder and onto the disk, readable for its owner only from its first moment.
    pub fn create(folder: &Path, id: DeviceId, key: &SigningKey) -> Result<Self, Failure> {
        let path = folder.join(format!("{id}.key"));
        let said = |error| Failure::new(format!("the private key could not be written to {}: {error}", path.display()));
        let path = std::path::absolute(&path).map_err(said)?;
        let pem = pem(key).ok_or_else(|| Failure::new("the private key could not be encoded"))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(said)?;
        let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| sync(folder));
        let key_file = Self(path);
        match written {
            Ok(()) => Ok(key_file),
            Err(error) => {
                let failure = said(error);
                key_file.discard();
                Err(failure)
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes the file again. If that fails the key that stays is of no use to anybody.
    pub fn discard(self) {
        let _ = fs::remove_file(self.0);
    }
}

/// A new file's name is on the disk only after its folder is.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Version 1, which leaves the public key out: OpenSSL 3.0 can not read version 2.
fn pem(key: &SigningKey) -> Option<Zeroizing<String>> {
    KeypairBytes { secret_key: key.to_bytes(), public_key: None }.to_pkcs8_pem(LineEnding::LF).ok()
}

/// A new key from the system's random source; without one there is none.
pub fn generate() -> Result<SigningKey, Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|error| Failure::new(format!("the system gives no random bytes: {error}")))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Reads a private key of either PKCS#8 version.
pub fn read(path: &Path) -> Result<SigningKey, Failure> {
    let content = read_bounded(path)?;
    let text = std::str::from_utf8(&content).unwrap_or_default();
    SigningKey::from_pkcs8_pem(text.trim_start()).map_err(|_| {
        Failure::new(format!("{} holds no Ed25519 private key (unencrypted PKCS#8 in PEM)", path.display()))
    })
}

/// The content of a file that holds a key, up to a length that no key has.
pub fn read_bounded(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut content = Zeroizing::new(Vec::new());
    let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut content));
    read.map_err(|error| Failure::new(format!("{} can not be read: {error}", path.display())))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key() -> (DeviceId, SigningKey) {
        let key = SigningKey::from_bytes(&[7; 32]);
        (DeviceId::from_public_key(&key.verifying_key().to_bytes()), key)
    }

    #[test]
    fn the_file_is_version_1_and_for_its_owner_only() {
        let (folder, (id, key)) = (tempfile::tempdir().unwrap(), key());
        let file = KeyFile::create(folder.path(), id, &key).unwrap();
        assert_eq!(file.path(), folder.path().join(format!("{id}.key")));
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        let pem = fs::read_to_string(file.path()).unwrap();
        // RFC 8410 §10.3 has the same 48 bytes around another seed, which is 64 characters.
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"), "{pem}");
        assert_eq!(pem.lines().nth(1).unwrap().len(), 64);
        assert_eq!(read(file.path()).unwrap().to_bytes(), key.to_bytes());
    }

    #[test]
    fn a_file_that_is_there_is_never_overwritten() {
        let (folder, (id, key)) = (tempfile::tempdir().unwrap(), key());
        let path = folder.path().join(format!("{id}.key"));
        fs::write(&path, "precious").unwrap();
        assert!(KeyFile::create(folder.path(), id, &key).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        fs::write(&path, b"\xff\xfe nothing").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&folder.path().join("missing")).is_err());
    }
}
