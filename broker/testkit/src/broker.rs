//! The real `tavi` program as a child: started on free ports, killed, stopped and started again on the same data.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// Every listener key of `tavi serve --listen`.
pub const LISTENERS: [&str; 7] = ["xmpp", "xmpps", "mqtt", "mqtts", "coap", "http", "https"];

/// A first start makes certificates and a store; a busy machine makes it slow.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The order of a stop is to be over after five seconds; a slow and busy machine takes its own time beside that.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running broker with a data folder of its own. Dropping it kills the process and removes the folder;
/// when the thread panics, what the broker wrote to stderr is shown.
pub struct Broker {
    folder: TempDir,
    config: Option<PathBuf>,
    child: Child,
    listeners: HashMap<String, SocketAddr>,
}

impl Broker {
    /// Starts a broker with the defaults and waits until it is ready.
    ///
    /// # Errors
    /// The program is missing, or does not become ready within a minute; its stderr is in the error.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(TempDir::with_prefix("tavi-test")?, None)
    }

    /// Starts a broker with this text as its configuration file (none if it is empty) and these bots, each a
    /// name and a script.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn start_with(config: &str, bots: &[(String, String)]) -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("tavi-test")?;
        let file = folder.path().join("test.toml");
        fs::write(&file, config)?;
        for (name, script) in bots {
            put_bot(folder.path(), name, script)?;
        }
        Self::start_in(folder, (!config.is_empty()).then_some(file))
    }

    fn start_in(folder: TempDir, config: Option<PathBuf>) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.path().join("data"))?;
        let (child, listeners) = spawn(folder.path(), config.as_deref())?;
        Ok(Self { folder, config, child, listeners })
    }

    /// The broker's data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Domain of the accounts.
    pub fn domain(&self) -> &'static str {
        "localhost"
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where the listener of this key (`xmpp`, `mqtt`, `coap` …) accepts.
    ///
    /// # Errors
    /// The broker's ready line did not name the key.
    pub fn address(&self, key: &str) -> anyhow::Result<SocketAddr> {
        self.listeners.get(key).copied().with_context(|| format!("the broker has no listener {key}"))
    }

    /// Resident memory of the process, in KiB.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resident_kib(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The sum of all samples of a metric, from `/metrics`.
    ///
    /// # Errors
    /// The page cannot be had, or does not name the metric.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(self.address("http")?)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let samples = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let values: Vec<f64> = samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        ensure!(!values.is_empty(), "no metric {name} in\n{page}");
        Ok(values.iter().sum())
    }

    /// What the broker wrote to stderr since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(log_file(self.folder.path())).unwrap_or_default()
    }

    /// Kills the process without warning, as `kill -9` does. [`Broker::start_again`] brings it back.
    ///
    /// # Errors
    /// The process cannot be waited for.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to stop (SIGTERM).
    ///
    /// # Errors
    /// It does not end within half a minute, or with another code than 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        signal(self.pid(), "-TERM")?;
        let status = wait(&mut self.child, STOP_LIMIT)?;
        ensure!(status.success(), "the broker stopped with {status}\n{}", self.log());
        Ok(())
    }

    /// Starts a killed or stopped broker again on the same data, on new ports.
    ///
    /// # Errors
    /// As [`Broker::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        (self.child, self.listeners) = spawn(self.folder.path(), self.config.as_deref())?;
        Ok(())
    }

    /// Makes an account.
    ///
    /// # Errors
    /// `tavi user add` fails; what it said is in the error.
    pub fn add_user(&self, jid: &str, password: &str) -> anyhow::Result<()> {
        let mut command = Command::new(program("tavi")?);
        command.args(["user", "add", jid, "--password-stdin", "--json", "--data"]).arg(self.data());
        answer(&mut command, password).map(drop)
    }

    /// Runs `tavi-fleet --local DATA … --json` and returns its answer.
    ///
    /// # Errors
    /// The program fails; what it said is in the error.
    pub fn fleet(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(program("tavi-fleet")?);
        // A key file that it makes lands in the current folder.
        command.current_dir(self.folder.path()).arg("--local").arg(self.data()).args(arguments).arg("--json");
        answer(&mut command, "")
    }

    /// Runs `tavi … --data DATA --json` and returns its answer.
    ///
    /// # Errors
    /// The program fails; what it said is in the error.
    pub fn tavi(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = Command::new(program("tavi")?);
        command.args(arguments).arg("--data").arg(self.data()).arg("--json");
        answer(&mut command, "")
    }

    /// Puts a bot's script where the running broker looks for it, whole at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_bot(&self, name: &str, script: &str) -> anyhow::Result<()> {
        put_bot(self.folder.path(), name, script)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the broker's stderr ---\n{}", self.log());
        }
    }
}

/// The path of one of our programs: `TAVI_PROGRAMS`, or the target folder that this test was built into.
///
/// # Errors
/// It has not been built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("TAVI_PROGRAMS") {
        Some(folder) => PathBuf::from(folder),
        None => own_folder()?,
    };
    let path = folder.join(name);
    ensure!(path.is_file(), "{name} is not built; run: cargo build --workspace --bins");
    Ok(path)
}

/// Tests run from `target/PROFILE/deps`, programs lie in `target/PROFILE`.
fn own_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("a program without a folder")?;
    let inner = folder.ends_with("deps") || folder.ends_with("examples");
    Ok(if inner { folder.parent().context("deps without a parent")?.into() } else { folder.into() })
}

fn put_bot(folder: &Path, name: &str, script: &str) -> anyhow::Result<()> {
    let bots = folder.join("data/bots");
    fs::create_dir_all(&bots)?;
    let draft = folder.join("draft.rhai");
    fs::write(&draft, script)?;
    Ok(fs::rename(draft, bots.join(format!("{name}.rhai")))?)
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("stderr.txt")
}

fn spawn(folder: &Path, config: Option<&Path>) -> anyhow::Result<(Child, HashMap<String, SocketAddr>)> {
    let log = File::options().create(true).append(true).open(log_file(folder))?;
    let mut command = Command::new(program("tavi")?);
    command.args(["serve", "--json", "--data"]).arg(folder.join("data"));
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    for key in LISTENERS {
        command.args(["--listen", &format!("{key}=127.0.0.1:0")]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
    match ready(&mut child) {
        Ok(listeners) => Ok((child, listeners)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(log_file(folder)).unwrap_or_default();
            Err(error.context(format!("the broker did not become ready; its stderr:\n{log}")))
        }
    }
}

fn ready(child: &mut Child) -> anyhow::Result<HashMap<String, SocketAddr>> {
    let lines = read_lines(child)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let line = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        if value["ready"] == true {
            return listeners(&value["listeners"]);
        }
    }
}

/// The thread goes on reading, so that the broker never blocks on a full pipe.
fn read_lines(child: &mut Child) -> anyhow::Result<mpsc::Receiver<String>> {
    let output = child.stdout.take().context("stdout is not piped")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    Ok(receiver)
}

fn listeners(value: &Value) -> anyhow::Result<HashMap<String, SocketAddr>> {
    let named = value.as_object().context("the ready line has no listeners")?;
    let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    named
        .iter()
        .map(|(key, value)| Some((key.clone(), address(value)?)))
        .collect::<Option<_>>()
        .context("a bad address")
}

fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").args([name, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill {name} {pid} failed");
    Ok(())
}

fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::park_timeout(Duration::from_millis(10));
    }
    bail!("the broker still runs after {} s", limit.as_secs())
}

fn answer(command: &mut Command, input: &str) -> anyhow::Result<Value> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin is not piped")?;
    // A program that ends without reading its input is judged by its exit code.
    let _ = writeln!(stdin, "{input}");
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} failed: {said}", command.get_program());
    let text = String::from_utf8(output.stdout)?;
    if text.trim().is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_str(&text).map_err(|e| anyhow!("{e}: {text}"))
    }
}
