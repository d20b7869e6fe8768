//! The servers of a comparison as child processes on loopback, each with a temporary folder of its own.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::Target;
use crate::xmpp_client::XmppClient;

/// The password of every account of a comparison.
pub const PASSWORD: &str = "load";

const START_LIMIT: Duration = Duration::from_secs(60);

/// A server that runs until it is dropped.
pub struct Server {
    child: Child,
    addresses: HashMap<&'static str, SocketAddr>,
    /// Removed after the child's end.
    folder: TempDir,
}

impl Server {
    /// The load's target for one of its listeners.
    pub fn target(&self, key: &str) -> anyhow::Result<Target> {
        let address = *self.addresses.get(key).with_context(|| format!("no listener {key}"))?;
        Ok(Target { address, host: "localhost".into(), password: PASSWORD.into(), pid: self.child.id() })
    }

    fn wait_for(&mut self, key: &'static str) -> anyhow::Result<()> {
        let address = self.addresses[key];
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            ensure!(self.child.try_wait()?.is_none(), "it ended at once; see {}", self.folder.path().display());
            ensure!(Instant::now() < deadline, "it does not listen");
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// ejabberd with the modules that tavi has, no shapers, and registration in band, for accounts.
pub async fn ejabberd(accounts: &[String]) -> anyhow::Result<Server> {
    let folder = TempDir::with_prefix("tavi-load")?;
    let port = free_port()?;
    let config = folder.path().join("ejabberd.yml");
    fs::write(&config, EJABBERD.replace("PORT", &port.to_string()))?;
    let mut command = Command::new("erl");
    command.args(["-noinput", "+K", "true", "+P", "250000", "-mnesia", "dir"]);
    command.arg(format!("{:?}", folder.path().join("mnesia")));
    command.args(["-s", "ejabberd"]).current_dir(folder.path()).env("HOME", folder.path());
    command.env("ERL_LIBS", erlang_libraries()?).env("EJABBERD_CONFIG_PATH", &config);
    command.env("EJABBERD_LOG_PATH", folder.path().join("ejabberd.log")).stdout(Stdio::null());
    let mut server = start(command, folder, &[("xmpp", port)])?;
    server.wait_for("xmpp").context("ejabberd")?;
    register(&server, accounts).await?;
    Ok(server)
}

/// Prosody as Debian configures it, with its archive on and without what has to do with other servers; in-band
/// registration, for accounts.
pub async fn prosody(accounts: &[String]) -> anyhow::Result<Server> {
    let folder = TempDir::with_prefix("tavi-load")?;
    let port = free_port()?;
    let config = folder.path().join("prosody.cfg.lua");
    let text = PROSODY.replace("PORT", &port.to_string()).replace("FOLDER", &folder.path().display().to_string());
    fs::write(&config, text)?;
    let mut command = Command::new("prosody");
    command.arg("-F").arg("--config").arg(&config).stdout(Stdio::null());
    let mut server = start(command, folder, &[("xmpp", port)])?;
    server.wait_for("xmpp").context("prosody")?;
    register(&server, accounts).await?;
    Ok(server)
}

async fn register(server: &Server, accounts: &[String]) -> anyhow::Result<()> {
    let target = server.target("xmpp")?;
    for account in accounts {
        XmppClient::connect(target.address, &target.host).await?.register(account, PASSWORD).await?;
    }
    Ok(())
}

/// Where Debian keeps ejabberd's own libraries: `/usr/lib/ARCHITECTURE/ejabberd-VERSION`.
fn erlang_libraries() -> anyhow::Result<PathBuf> {
    let has_ejabberd = |folder: &Path| {
        let entries = fs::read_dir(folder).ok()?;
        entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with("ejabberd-"))
    };
    let folders = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    folders.into_iter().find(|folder| has_ejabberd(folder).is_some()).context("ejabberd is not installed")
}

/// mosquitto as Debian configures it, without log; with persistence on disk only if `more` lines of its configuration
/// say so. With its default limit on queued messages
/// version 2.0.11 loses some long before the limit, so that a load would never end.
pub fn mosquitto(more: &str) -> anyhow::Result<Server> {
    let folder = TempDir::with_prefix("tavi-load")?;
    let port = free_port()?;
    let config = folder.path().join("mosquitto.conf");
    fs::write(
        &config,
        format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\nmax_queued_messages 0\n\
             persistence_location {}/\nuser root\n{more}",
            folder.path().display()
        ),
    )?;
    let mut command =
        Command::new(["/usr/sbin/mosquitto", "mosquitto"][usize::from(!Path::new("/usr/sbin/mosquitto").is_file())]);
    command.arg("-c").arg(config).stdout(Stdio::null());
    let mut server = start(command, folder, &[("mqtt", port)])?;
    server.wait_for("mqtt").context("mosquitto")?;
    Ok(server)
}

/// tavi with its defaults, except perhaps the engine, and with archives only where the peer has them. All accounts may read what the first one publishes.
pub fn tavi(program: &Path, accounts: &[String], (engine, archive): (Option<&str>, bool)) -> anyhow::Result<Server> {
    let folder = TempDir::with_prefix("tavi-load")?;
    let data = folder.path().join("data");
    fs::create_dir_all(&data)?;
    let engine = engine.map(|engine| format!("[store]\nengine = {engine:?}\n")).unwrap_or_default();
    // A program from before there were archives refuses the key.
    let archive = if archive { "" } else { "[archive]\nenabled = false\n" };
    fs::write(data.join("tavi.toml"), engine + archive)?;
    let mut command = Command::new(program);
    command.args(["serve", "--json", "--data"]).arg(&data);
    for key in ["xmpp", "xmpps", "mqtt", "mqtts", "coap", "http", "https"] {
        command.args(["--listen", &format!("{key}=127.0.0.1:0")]);
    }
    command.stdout(Stdio::piped());
    let mut server = start(command, folder, &[])?;
    server.addresses = ready(&mut server.child)?;
    for account in accounts {
        add_user(program, &data, account).with_context(|| format!("account {account}"))?;
    }
    if accounts.len() > 1 && accounts[0] == crate::mqtt::ACCOUNT {
        for account in &accounts[1..] {
            grant(program, &data, account).with_context(|| format!("the grant of {account}"))?;
        }
    }
    Ok(server)
}

/// The fleet operator's command stands beside the broker's program.
fn grant(program: &Path, data: &Path, account: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program.with_file_name("tavi-fleet"));
    command.args(["grant", "add", &format!("{account}@localhost"), "subscribe,retrieve", "u/load/#", "--local"]);
    ensure!(command.arg(data).stdout(Stdio::null()).status()?.success(), "tavi-fleet grant add failed");
    Ok(())
}

fn ready(child: &mut Child) -> anyhow::Result<HashMap<&'static str, SocketAddr>> {
    let output = child.stdout.take().context("stdout is not piped")?;
    for line in BufReader::new(output).lines() {
        let Ok(value) = serde_json::from_str::<Value>(&line?) else { continue };
        if value["ready"] == true {
            let address = |key: &'static str| Some((key, value["listeners"][key].as_str()?.parse().ok()?));
            return Ok(["xmpp", "xmpps", "mqtt"].into_iter().filter_map(address).collect());
        }
    }
    bail!("tavi ended before it was ready")
}

fn add_user(program: &Path, data: &Path, account: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(["user", "add", &format!("{account}@localhost"), "--password-stdin", "--data"]).arg(data);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    writeln!(child.stdin.take().context("stdin is not piped")?, "{PASSWORD}")?;
    ensure!(child.wait()?.success(), "tavi user add failed");
    Ok(())
}

fn start(mut command: Command, folder: TempDir, ports: &[(&'static str, u16)]) -> anyhow::Result<Server> {
    let log = fs::File::create(folder.path().join("stderr.txt"))?;
    let child = command.stdin(Stdio::null()).stderr(log).spawn();
    let child = child.with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let addresses = ports.iter().map(|(key, port)| (*key, (Ipv4Addr::LOCALHOST, *port).into())).collect();
    Ok(Server { child, addresses, folder })
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const PROSODY: &str = r#"
run_as_root = true
pidfile = "FOLDER/prosody.pid"
data_path = "FOLDER"
log = { error = "FOLDER/prosody.err" }
interfaces = { "127.0.0.1" }
c2s_ports = { PORT }
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
allow_registration = true
authentication = "internal_hashed"
default_archive_policy = true
modules_disabled = { "s2s" }
modules_enabled = {
  "disco", "roster", "saslauth", "blocklist", "bookmarks", "carbons", "pep", "private", "smacks", "vcard4",
  "vcard_legacy", "csi_simple", "ping", "register", "time", "uptime", "version", "mam", "posix"
}
VirtualHost "localhost"
"#;

const EJABBERD: &str = r#"
hosts: [localhost]
loglevel: error
registration_timeout: infinity
auth_method: internal
listen:
  -
    port: PORT
    ip: "127.0.0.1"
    module: ejabberd_c2s
    starttls: false
    max_stanza_size: 262144
shaper_rules:
  max_user_sessions: infinity
  max_user_offline_messages: 100
access_rules:
  register:
    allow: all
modules:
  mod_adhoc: {}
  mod_caps: {}
  mod_carboncopy: {}
  mod_disco: {}
  mod_muc:
    host: rooms.localhost
  mod_offline:
    access_max_user_messages: max_user_offline_messages
  mod_ping: {}
  mod_pubsub:
    plugins: [flat, pep]
  mod_register:
    access: register
    ip_access: all
  mod_roster: {}
  mod_stream_mgmt: {}
  mod_version: {}
"#;
