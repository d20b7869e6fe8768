//! `device add`: a key pair made here, or a public key given; then the broker's answer, shown once.
//!
//! Order: the private key is on the disk before the broker hears of the public one, and it is removed again only
//! if it is certain that the broker did not take it. So no accepted device is ever without its key.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;
use tavi_enrol::admin::{AddedDevice, NewDevice, Status};
use tavi_enrol::key::PublicKey;
use tavi_fleet::{Client, ClientError};

use crate::args::Add;
use crate::keyfile::{self, KeyFile};
use crate::output::{Failure, Output};

/// What is printed: the broker's answer and where the private key is.
#[derive(Serialize)]
struct Added {
    #[serde(flatten)]
    answer: AddedDevice,
    private_key_file: Option<PathBuf>,
}

pub async fn run(client: &Client, args: &Add, output: &Output) -> Result<(), Failure> {
    let status = client.status().await?;
    let (public_key, file) = match &args.public_key {
        Some(path) => (read_public(path)?, None),
        None => make_pair(args)?,
    };
    let answer = match client.add_device(&NewDevice { public_key, name: args.name.clone() }).await {
        Ok(answer) => answer,
        Err(error) => return Err(without_device(error, file)),
    };
    let id = answer.device.id;
    let added = Added { answer, private_key_file: file.map(|file| file.path().to_owned()) };
    let shown = output.show(&added, |added| describe(added, &status));
    shown.map_err(|failure| {
        failure.hint(format!("device {id} was added, but its secret is lost: remove it and add it again"))
    })
}

fn read_public(path: &std::path::Path) -> Result<PublicKey, Failure> {
    let content = keyfile::read_bounded(path)?;
    PublicKey::from_file(&content).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

fn make_pair(args: &Add) -> Result<(PublicKey, Option<KeyFile>), Failure> {
    let key = keyfile::generate()?;
    let public = PublicKey::from_bytes(key.verifying_key().to_bytes())
        .map_err(|error| Failure::new(format!("the new key is unusable: {error}")))?;
    let file = KeyFile::create(&args.out, public.device_id(), &key)?;
    Ok((public, Some(file)))
}

/// If the broker may have taken the public key, the private one has to stay.
fn without_device(error: ClientError, file: Option<KeyFile>) -> Failure {
    match file {
        Some(file) if error.nothing_changed() => {
            file.discard();
            error.into()
        }
        Some(file) => Failure::from(error).and(format!("the private key is kept in {}", file.path().display())),
        None => error.into(),
    }
}

fn describe(added: &Added, status: &Status) -> String {
    let device = &added.answer.device;
    let secret = added.answer.secret.expose();
    let name = device.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!("Added device {}{name}\n", device.id);
    // Writing into a String does not fail.
    let _ = writeln!(text, "  JID          {}", device.jid);
    let _ = writeln!(text, "  public key   {}", device.public_key);
    if let Some(path) = &added.private_key_file {
        let _ = writeln!(text, "  private key  {} (give it to the device, keep it secret)", path.display());
    }
    let _ = writeln!(text, "  secret       {secret} (for clients that know only passwords; not shown again)");
    if let Some((host, port)) = mqtt_address(status) {
        let id = device.id;
        let _ = writeln!(text, "\nTry it:");
        let _ =
            writeln!(text, "  mosquitto_pub -h {host} -p {port} -i {id} -u {id} -P {secret} -t d/{id}/up/hello -m hi");
    }
    text
}

/// The clear MQTT listener's host and port, if it is open.
fn mqtt_address(status: &Status) -> Option<(&str, &str)> {
    let (host, port) = status.listeners.get("mqtt")?.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']), port))
}
