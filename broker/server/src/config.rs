//! The configuration: `tavi.toml`, then the flags; each key with its default.

use crate::{cli::ServeArgs, limits::Limits};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use tavi_core::Hosts;

/// The listeners, in the order in which they are opened and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    Xmpp,
    Xmpps,
    Mqtt,
    Mqtts,
    Coap,
    Http,
    Https,
}

impl Key {
    pub const ALL: [Key; 7] = [Key::Xmpp, Key::Xmpps, Key::Mqtt, Key::Mqtts, Key::Coap, Key::Http, Key::Https];

    pub fn name(self) -> &'static str {
        ["xmpp", "xmpps", "mqtt", "mqtts", "coap", "http", "https"][self as usize]
    }

    /// The registered port (RFC 6120 §14.7, XEP-0368, MQTT 5 §4.2, RFC 7252 §12.6; HTTP as other XMPP servers do).
    fn port(self) -> u16 {
        [5222, 5223, 1883, 8883, 5683, 5280, 5443][self as usize]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(name: &str) -> Result<Key, String> {
        let found = Key::ALL.into_iter().find(|key| key.name() == name);
        found.ok_or_else(|| format!("there is no listener {name:?}: use xmpp, xmpps, mqtt, mqtts, coap, http or https"))
    }
}

/// Where a listener listens: several addresses with one port, or nowhere.
pub type Addresses = Vec<SocketAddr>;

/// The addresses that `text` means: `off`, `localhost:PORT` (both loopback addresses), or `ADDR:PORT`.
pub fn parse_addresses(text: &str) -> Result<Addresses> {
    if text == "off" {
        return Ok(Vec::new());
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        return Ok(loopback(port.parse().with_context(|| format!("{port:?} is no port"))?));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok(vec![address]),
        Err(_) => bail!(
            "{text:?} is no place to listen: write ADDR:PORT such as 0.0.0.0:5222 or [::]:5222, localhost:PORT, or off"
        ),
    }
}

fn loopback(port: u16) -> Addresses {
    let ips: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    ips.map(|ip| SocketAddr::new(ip, port)).to_vec()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    domain: Option<String>,
    #[serde(default)]
    listen: ListenFile,
    #[serde(default)]
    store: StoreFile,
    #[serde(default)]
    tls: TlsFile,
    #[serde(default)]
    log: LogFile,
    #[serde(default)]
    archive: ArchiveFile,
    #[serde(default)]
    bots: BotsFile,
    #[serde(default)]
    limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenFile {
    xmpp: Option<String>,
    xmpps: Option<String>,
    mqtt: Option<String>,
    mqtts: Option<String>,
    coap: Option<String>,
    http: Option<String>,
    https: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreFile {
    engine: Option<String>,
    cache_mib: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFile {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogFile {
    level: Option<String>,
    format: Option<LogFormat>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BotsFile {
    folder: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveFile {
    enabled: Option<bool>,
    keep_days: Option<u64>,
}

/// How long messages stay in archives, in days, if nothing is configured; and the most that may be.
const KEEP_DAYS: u64 = 365;
const MAX_KEEP_DAYS: u64 = 36_500;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// What the broker runs with.
#[derive(Debug)]
pub struct Config {
    pub data: PathBuf,
    pub hosts: Hosts,
    pub listen: Vec<(Key, Addresses)>,
    /// The engine that was asked for; else that of the store that is there, else fjall.
    pub engine: Option<tavi_store_kv::Engine>,
    pub cache_bytes: u64,
    pub certificate: Option<(PathBuf, PathBuf)>,
    pub log_level: String,
    pub log_format: LogFormat,
    /// Whether accounts have archives.
    pub archive: bool,
    /// How long messages stay in archives; `None`: for ever.
    pub archive_keep: Option<Duration>,
    pub bots: Vec<PathBuf>,
    pub limits: Limits,
    pub json: bool,
}

impl Config {
    /// Reads the configuration file, if there is one, and applies the flags.
    pub fn load(args: &ServeArgs) -> Result<Config> {
        let data = args.data.clone().unwrap_or_else(|| "./tavi-data".into());
        let default_file = data.join("tavi.toml");
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None if default_file.exists() => read_file(&default_file)?,
            None => File::default(),
        };
        Config::merge(args, data, file)
    }

    /// Where the store lies.
    pub fn store_path(&self) -> PathBuf {
        self.data.join("store")
    }

    /// For `--check`: the folders of bots that were named are there. A start makes one that is not.
    pub fn check_folders(&self) -> Result<()> {
        match self.bots.iter().skip(1).find(|folder| !folder.is_dir()) {
            Some(folder) => bail!("there is no folder of bots {}", folder.display()),
            None => Ok(()),
        }
    }

    fn merge(args: &ServeArgs, data: PathBuf, file: File) -> Result<Config> {
        let domain = args.domain.as_deref().or(file.domain.as_deref()).unwrap_or("localhost");
        let hosts =
            Hosts::new(domain, &tavi_modules::HOSTS).with_context(|| format!("{domain:?} is no domain name"))?;
        let engine = file.store.engine.as_deref();
        let engine = engine
            .map(|name| name.parse().map_err(|_| anyhow::anyhow!("[store] engine = {name:?}: use sled or fjall")));
        let certificate = match (file.tls.certificate, file.tls.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("[tls] needs both certificate and key, or neither"),
        };
        file.limits.check()?;
        let keep_days = file.archive.keep_days.unwrap_or(KEEP_DAYS);
        if keep_days > MAX_KEEP_DAYS {
            bail!("[archive] keep_days = {keep_days}: it has to be from 0 to {MAX_KEEP_DAYS}");
        }
        let listen = listeners(&file.listen, &args.listen)?;
        distinct(&listen)?;
        let bots = [Some(data.join("bots")), file.bots.folder, args.bots.clone()].into_iter().flatten().collect();
        Ok(Config {
            hosts,
            listen,
            engine: engine.transpose()?,
            cache_bytes: cache_mib(file.store.cache_mib)? << 20,
            certificate,
            log_level: log_level(file.log.level)?,
            log_format: file.log.format.unwrap_or(if args.json { LogFormat::Json } else { LogFormat::Text }),
            archive: file.archive.enabled.unwrap_or(true),
            archive_keep: (keep_days != 0).then(|| Duration::from_secs(keep_days * 86_400)),
            bots,
            limits: file.limits,
            json: args.json,
            data,
        })
    }
}

fn cache_mib(written: Option<u64>) -> Result<u64> {
    match written.unwrap_or(64) {
        mib @ 1..=1_048_576 => Ok(mib),
        other => bail!("[store] cache_mib = {other}: it has to be from 1 to 1048576"),
    }
}

/// A level, or filters; a word that is neither would silence everything.
fn log_level(level: Option<String>) -> Result<String> {
    let level = level.unwrap_or_else(|| "info".into());
    let known = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    for filter in level.split(',') {
        let word = filter.rsplit_once('=').map_or(filter, |(_, level)| level).trim();
        if !known(&word.to_ascii_lowercase()) {
            bail!(
                "[log] level = {level:?}: {word:?} is no level; use error, warn, info, debug, trace, or filters such as \"info,tavi_mqtt=debug\""
            );
        }
    }
    Ok(level)
}

fn listeners(file: &ListenFile, flags: &[(Key, String)]) -> Result<Vec<(Key, Addresses)>> {
    let written = [&file.xmpp, &file.xmpps, &file.mqtt, &file.mqtts, &file.coap, &file.http, &file.https];
    let one = |key: Key| {
        let flag = flags.iter().rev().find(|(k, _)| *k == key).map(|(_, text)| text);
        let addresses = match flag.or(written[key as usize].as_ref()) {
            Some(text) => parse_addresses(text).with_context(|| format!("the listener {key}"))?,
            None => loopback(key.port()),
        };
        Ok((key, addresses))
    };
    Key::ALL.into_iter().map(one).collect()
}

/// Two TCP listeners can not have one address; CoAP's are UDP.
fn distinct(listen: &[(Key, Addresses)]) -> Result<()> {
    let tcp =
        || listen.iter().filter(|(key, _)| *key != Key::Coap).flat_map(|(key, all)| all.iter().map(move |a| (key, a)));
    for (key, address) in tcp() {
        let all = |ip: IpAddr| ip.is_unspecified();
        let meets = |other: &SocketAddr| {
            let same = other.ip() == address.ip();
            let within = other.is_ipv4() == address.is_ipv4() && (all(other.ip()) || all(address.ip()));
            address.port() != 0 && other.port() == address.port() && (same || within)
        };
        if let Some((other, _)) = tcp().find(|(other, at)| *other > key && meets(at)) {
            bail!(
                "the listeners {key} and {other} have one address, {address}: give each its own port, or turn one off"
            );
        }
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is not right", path.display()))
}

fn parse(text: &str) -> Result<File> {
    toml::from_str(text).map_err(|error| {
        let suggestion = suggestion(error.message());
        anyhow::anyhow!(
            "{}{}",
            error.to_string().trim_end(),
            suggestion.map(|s| format!("\ndid you mean `{s}`?")).unwrap_or_default()
        )
    })
}

/// The known key nearest to an unknown one, out of serde's message: unknown field `x`, expected one of `a`, `b`.
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().filter(|_| message.starts_with("unknown field"))?;
    let nearest = quoted.min_by_key(|known| distance(unknown, known))?;
    (distance(unknown, nearest) <= unknown.len().max(3) / 2).then(|| nearest.to_owned())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let cost = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[row.len() - 1]
}

/// The commented file that a first start leaves in the data folder.
pub const TEMPLATE: &str = r#"# Tavi's configuration. Every key is optional; what stands here as a comment is the default.
# `tavi serve --check` tells whether it is right.

# The domain of people's addresses. Devices live on things.DOMAIN, bots on bots.DOMAIN, topics on pubsub.DOMAIN.
#domain = "localhost"

# Where to listen: "ADDR:PORT" such as "0.0.0.0:5222" or "[::]:5222", "localhost:PORT" (this machine only), or "off".
[listen]
#xmpp  = "localhost:5222"   # STARTTLS
#xmpps = "localhost:5223"   # direct TLS
#mqtt  = "localhost:1883"   # passwords in clear are taken from this machine only
#mqtts = "localhost:8883"
#coap  = "localhost:5683"   # UDP
#http  = "localhost:5280"   # /healthz, /readyz and /metrics
#https = "localhost:5443"

[store]
#engine = "fjall"           # or "sled", for a new store; an existing one is moved with `tavi store migrate --to sled`
#cache_mib = 64

# Your own certificate, PEM. Without it one is made by the broker's own CA in tls/ca.pem.
# SIGHUP reads the files again.
[tls]
#certificate = "/etc/tavi/fullchain.pem"
#key = "/etc/tavi/key.pem"

[log]
#level = "info"             # error, warn, info, debug, trace, or filters such as "info,tavi_mqtt=debug"
#format = "text"            # or "json"

# What people wrote, for their other clients.
[archive]
#enabled = true            # false: nothing is archived from now on, and what was is not shown
#keep_days = 365           # 0: for ever

[bots]
#folder = "/etc/tavi/bots"  # beside the folder `bots` here

# What a peer may take. Bytes and seconds are in the names.
[limits]
#grants_per_subject = 1000  # those of the nodes that somebody created among them
#retained_topics = 1000000  # of one person, device or bot
#retained_bytes = 1073741824

[limits.xmpp]
#stanza_bytes = 262144
#login_seconds = 30         # from connecting to being logged in
#connections = 100000
#unacknowledged = 1000      # stanzas on their way to a client with stream management
#unacknowledged_bytes = 4194304
#acknowledge_seconds = 60   # for a client that gets nothing more before it acknowledges
#resume_seconds = 300       # how long a session waits for its client after its connection broke
#inbox_stanzas = 10000      # waiting for one session
#inbox_bytes = 4194304
#kept_messages = 1000       # for one account that is away
#kept_bytes = 16777216
#sessions_per_account = 64

[limits.mqtt]
#packet_bytes = 1048576
#connect_seconds = 10       # from connecting to CONNECT
#connections = 100000
#receive_maximum = 1000     # publishes of one client that may be open
#in_flight = 256            # deliveries to one client that may be unacknowledged
#queue_messages = 20000     # waiting in memory for one client
#queue_bytes = 16777216
#stored_messages = 1000000  # kept for one durable session
#stored_bytes = 1073741824  # the same, in bytes
#durable_sessions = 100     # of one person or device
#session_expiry_seconds = 4294967295 # how long a session may outlive its connection, also one of 3.1.1; the default: for ever
#subscriptions = 10000      # of one session

[limits.coap]
#observers_per_peer = 64
#observers = 4096
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, listen: &[(&str, &str)]) -> Result<Config> {
        let listen = listen.iter().map(|(k, v)| (k.parse().unwrap(), v.to_string())).collect();
        let args = ServeArgs { listen, ..ServeArgs::default() };
        Config::merge(&args, "data".into(), parse(text)?)
    }

    fn addresses(config: &Config, key: Key) -> Vec<String> {
        config.listen[key as usize].1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_default_is_loopback_only() {
        let config = config("", &[]).unwrap();
        assert_eq!(addresses(&config, Key::Xmpp), ["127.0.0.1:5222", "[::1]:5222"]);
        assert!(config.listen.iter().flat_map(|(_, a)| a).all(|a| a.ip().is_loopback()));
        assert_eq!(config.hosts.domain(), "localhost");
    }

    #[test]
    fn archives_are_on_for_a_year_can_be_kept_for_ever_and_can_be_off() {
        let day = Duration::from_secs(86_400);
        for (text, archive, keep) in [
            ("", true, Some(day * 365)),
            ("[archive]\nkeep_days = 0\n", true, None),
            ("[archive]\nenabled = false\nkeep_days = 7\n", false, Some(day * 7)),
        ] {
            let config = config(text, &[]).unwrap();
            assert_eq!((config.archive, config.archive_keep), (archive, keep), "{text}");
        }
        assert!(config("[archive]\nkeep_days = 36501\n", &[]).is_err());
    }

    #[test]
    fn flags_win_over_the_file_and_off_closes() {
        let text = "domain = 'example.org'\n[listen]\nmqtt = '0.0.0.0:1'\ncoap = 'off'\n";
        let config = config(text, &[("mqtt", "127.0.0.1:0"), ("http", "off")]).unwrap();
        assert_eq!(addresses(&config, Key::Mqtt), ["127.0.0.1:0"]);
        assert!(addresses(&config, Key::Coap).is_empty() && addresses(&config, Key::Http).is_empty());
        assert_eq!(config.hosts.domain(), "example.org");
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line_and_a_suggestion() {
        let error = format!("{:#}", parse("domain = 'a'\n[listen]\nmqqt = 'off'\n").unwrap_err());
        assert!(error.contains("line 3") && error.contains("did you mean `mqtt`?"), "{error}");
        assert!(parse("listne = 1").is_err());
    }

    #[test]
    fn the_template_is_right_as_it_stands_and_with_its_comments_taken_off() {
        parse(TEMPLATE).unwrap();
        let open: String = TEMPLATE
            .lines()
            .map(|l| {
                l.strip_prefix('#').filter(|l| l.contains(" = ") && !l.starts_with(' ')).unwrap_or(l).to_owned() + "\n"
            })
            .collect();
        let file = parse(&open).unwrap();
        assert_eq!(file.store.engine.as_deref(), Some("fjall"));
        file.limits.check().unwrap();
    }

    #[test]
    fn a_log_level_that_is_none_is_refused() {
        for good in ["info", "WARN", "info,tavi_mqtt=debug"] {
            config(&format!("[log]\nlevel = '{good}'"), &[]).unwrap();
        }
        for bad in ["loud", "info,tavi_mqtt=loud", ""] {
            assert!(config(&format!("[log]\nlevel = '{bad}'"), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_that_make_no_sense_are_refused_with_examples() {
        for text in ["5222", "example.org:5222", "localhost:x", ""] {
            assert!(parse_addresses(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        for (text, key) in [
            ("[limits.mqtt]\npacket_bytes = 0", "packet_bytes"),
            ("[limits.mqtt]\nstored_messages = 20000000", "stored_messages"),
            ("[limits.xmpp]\nstanza_bytes = 100", "stanza_bytes"),
            ("[limits.coap]\nobservers = 0", "observers"),
            ("[store]\ncache_mib = 0", "cache_mib"),
        ] {
            let error = format!("{:#}", config(text, &[]).unwrap_err());
            assert!(error.contains(key), "{text}: {error}");
        }
        for (one, other) in
            [("127.0.0.1:7001", "127.0.0.1:7001"), ("0.0.0.0:7001", "127.0.0.1:7001"), ("localhost:7001", "[::]:7001")]
        {
            let error = format!("{:#}", config("", &[("xmpp", one), ("mqtt", other)]).unwrap_err());
            assert!(error.contains("xmpp and mqtt have one address"), "{error}");
        }
        config("", &[("xmpp", "127.0.0.1:0"), ("mqtt", "127.0.0.1:0"), ("coap", "127.0.0.1:5222")]).unwrap();
        config("", &[("xmpp", "127.0.0.1:7001"), ("mqtt", "127.0.0.2:7001")]).unwrap();
    }
}
