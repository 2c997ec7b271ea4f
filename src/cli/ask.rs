//! The commands that ask the running daemon over its control socket.

use super::status;
use super::tree::Tree;
use super::units::bytes;
use super::{DEFAULT_CONFIG, Failure};
use crate::config;
use crate::control::{Address, Kick, REQUEST_MAX, Request};
use crate::error::Error;
use crate::sys::unix;
use argh::FromArgs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Show the state of everything: what is intercepted, the ways out, rules, sessions against their limits, memory, drops.
#[derive(FromArgs)]
#[argh(subcommand, name = "status", example = "{command_name}\n{command_name} --json")]
pub(super) struct Status {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// as one JSON document
    #[argh(switch)]
    json: bool,
}

/// Print all counters as Prometheus reads them.
#[derive(FromArgs)]
#[argh(subcommand, name = "metrics", example = "{command_name} > /var/lib/node_exporter/tproxyd.prom")]
pub(super) struct Metrics {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
}

/// End a session, or all of a client.
#[derive(FromArgs)]
#[argh(subcommand, name = "kick", example = "{command_name} 65537\n{command_name} --client 192.168.1.20")]
pub(super) struct KickCommand {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// end all sessions and flows of this client: an address, with or without a port
    #[argh(option, from_str_fn(address))]
    client: Option<Address>,
    /// the session's id, as `sessions` shows it
    #[argh(positional)]
    id: Option<u32>,
}

/// Make the daemon read its configuration again, and tell what changed, or everything that is wrong with it.
#[derive(FromArgs)]
#[argh(subcommand, name = "reload", example = "{command_name}")]
pub(super) struct Reload {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
}

/// Show what each client has moved since the start, the largest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "clients", example = "{command_name}\n{command_name} --json")]
pub(super) struct Clients {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// as one JSON document
    #[argh(switch)]
    json: bool,
}

/// Print what happens, as it happens, one JSON object a line: outbounds that go up or down, full tables, reloads.
#[derive(FromArgs)]
#[argh(subcommand, name = "events", example = "{command_name}")]
pub(super) struct Events {
    /// configuration file that names the control socket (default: /etc/config/tproxyd)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
}

/// How long the daemon may be silent. It answers within milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a reload may take: nft needs its time for large sets.
const RELOAD_PATIENCE: Duration = Duration::from_secs(160);

/// Bytes of one line of an answer at most; a status of thousands of rules is one line.
const LINE_MAX: u64 = 16 << 20;

pub(super) fn address(text: &str) -> Result<Address, String> {
    Address::parse(text)
}

impl Status {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut answer = Answer::to(&Request::Status, &self.config, PATIENCE)?;
        let text = answer.line()?;
        let tree = document(&text)?;
        if self.json { print(&text) } else { print(&status::screen(&tree)) }
    }
}

impl Metrics {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut answer = Answer::to(&Request::Metrics, &self.config, PATIENCE)?;
        answer.list_begins("lines")?;
        let mut out = Output::new();
        while let Some(element) = answer.element()? {
            let Ok(Tree::Text(line)) = Tree::parse(element.trim_end_matches([',', '\n'])) else {
                return Err(not_understood());
            };
            out.write(&line)?;
            out.write("\n")?;
        }
        out.flush()
    }
}

impl KickCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let which = match (self.id, self.client) {
            (Some(id), None) => Kick::Id(id),
            (None, Some(client)) => Kick::Client(client),
            _ => return Err(Failure::Usage("kick wants either the id of a session or --client".into())),
        };
        let tree = document(&Answer::to(&Request::Kick(which), &self.config, PATIENCE)?.line()?)?;
        print(&match tree.number("ended") {
            1 => "1 session ended\n".to_owned(),
            n => format!("{n} sessions ended\n"),
        })
    }
}

impl Reload {
    pub(super) fn run(self) -> Result<(), Failure> {
        let tree = document(&Answer::to(&Request::Reload, &self.config, RELOAD_PATIENCE)?.line()?)?;
        for warning in tree.texts("warnings") {
            eprintln!("{warning}");
        }
        let changed: Vec<&str> = tree.texts("changed").collect();
        print(&format!("reloaded; changed: {}\n", changed.join(", ")))
    }
}

impl Clients {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut answer = Answer::to(&Request::Clients, &self.config, PATIENCE)?;
        let mut text = String::new();
        loop {
            let line = answer.line()?;
            if line.is_empty() {
                break;
            }
            text += &line;
        }
        let tree = document(&text)?;
        if self.json {
            return print(&text);
        }
        let mut out = Output::new();
        out.write(CLIENTS_HEADER)?;
        for client in tree.list("clients") {
            out.write(&client_line(client.text("client"), client))?;
        }
        let others = tree.get("others");
        if others.number("evicted") > 0 {
            out.write(&client_line("(others)", others))?;
        }
        out.flush()
    }
}

/// The columns of `clients`.
const CLIENTS_HEADER: &str =
    "CLIENT                                   MAC                SESSIONS  SINCE START  UP        DOWN\n";

fn client_line(name: &str, client: &Tree) -> String {
    format!(
        "{name:<39}  {:<17}  {:<8}  {:<11}  {:<8}  {}\n",
        client.text("mac"),
        client.number("sessions"),
        client.number("total"),
        bytes(client.number("bytes_up")),
        bytes(client.number("bytes_down")),
    )
}

impl Events {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut answer = Answer::to(&Request::Events, &self.config, PATIENCE)?;
        document(&answer.line()?)?;
        // from here on it is silent for as long as nothing happens
        let endless = answer.lines.get_ref().set_read_timeout(None);
        endless.map_err(|e| Failure::Failed(Error::new("wait for the daemon's events", &e).to_string()))?;
        loop {
            let line = answer.line()?;
            if line.is_empty() {
                let error = Error::new("go on with the daemon's events", "it has ended, or this was too slow for it");
                return Err(Failure::Failed(error.to_string()));
            }
            print(&line)?;
        }
    }
}

/// What the daemon says, line by line.
pub(super) struct Answer {
    lines: BufReader<UnixStream>,
}

impl Answer {
    /// Asks the daemon whose configuration is `config`.
    pub(super) fn to(request: &Request, config: &Path, patience: Duration) -> Result<Answer, Failure> {
        let path = socket_of(config)?;
        let mut text = String::new();
        // text in memory takes everything
        let _ = request.write(&mut text);
        if text.len() > REQUEST_MAX {
            return Err(Failure::Usage(format!("that is longer than the {REQUEST_MAX} bytes of a request")));
        }
        text.push('\n');
        let mut stream = unix::connect(&path, PATIENCE).map_err(|e| unreachable(&path, &e))?;
        stream
            .set_read_timeout(Some(patience))
            .and_then(|()| stream.write_all(text.as_bytes()))
            .map_err(|e| unreachable(&path, &e))?;
        Ok(Answer { lines: BufReader::new(stream) })
    }

    /// The next line, with its break; the last of all is empty.
    pub(super) fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match (&mut self.lines).take(LINE_MAX).read_line(&mut line) {
            Ok(_) => Ok(line),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(Failure::Failed(Error::new("read the daemon's answer", "it has fallen silent").to_string()))
            }
            Err(e) => Err(Failure::Failed(Error::new("read the daemon's answer", &e).to_string())),
        }
    }

    /// Passes over the first line of an answer whose only list is `name`.
    pub(super) fn list_begins(&mut self, name: &str) -> Result<(), Failure> {
        let line = self.line()?;
        let list = line.trim_end().strip_suffix('[').map(|head| format!("{head}null}}"));
        match list.map(|head| Tree::parse(&head)) {
            Some(Ok(head))
                if head.number("v") == 1 && matches!(&head, Tree::Object(m) if m.iter().any(|m| m.0 == name)) =>
            {
                Ok(())
            }
            _ => {
                // the daemon says why there is no list
                document(&line)?;
                Err(not_understood())
            }
        }
    }

    /// The next element of the list, with its comma and line break; `None` behind the last.
    pub(super) fn element(&mut self) -> Result<Option<String>, Failure> {
        let line = self.line()?;
        match line.as_bytes().first() {
            Some(b']') => Ok(None),
            Some(_) if line.ends_with('\n') => Ok(Some(line)),
            _ => Err(Failure::Failed(Error::new("read the daemon's answer", "it ends too early").to_string())),
        }
    }
}

/// An answer of one line; an error if it says that it is one.
pub(super) fn document(text: &str) -> Result<Tree, Failure> {
    if text.is_empty() {
        let error = Error::new("read the daemon's answer", "it has closed the connection without one");
        return Err(Failure::Failed(error.hint("it has just been stopped, or its log says why").to_string()));
    }
    let tree = Tree::parse(text).map_err(|_| not_understood())?;
    match tree.get("error") {
        Tree::Text(error) => {
            let mut lines = vec![error.as_str()];
            let mistakes: Vec<&str> = tree.texts("errors").collect();
            let misconfigured = !mistakes.is_empty();
            lines.extend(mistakes);
            let text = lines.join("\n");
            Err(if misconfigured { Failure::Usage(text) } else { Failure::Failed(text) })
        }
        _ => Ok(tree),
    }
}

pub(super) fn not_understood() -> Failure {
    let error = Error::new("understand the daemon's answer", "it is not what this version expects");
    Failure::Failed(error.hint("restart the daemon after an upgrade").to_string())
}

fn socket_of(config: &Path) -> Result<PathBuf, Failure> {
    match config::load::control_path(config) {
        Ok(path) => Ok(path),
        // a daemon that was started with another file may have the usual socket
        Err(_) if config == Path::new(DEFAULT_CONFIG) => Ok(config::load::default_control_path()),
        Err(e) => Err(Failure::Usage(Error::new(format!("read {}", config.display()), &e).to_string())),
    }
}

fn unreachable(path: &Path, e: &io::Error) -> Failure {
    let error = Error::new(format!("ask the daemon at {}", path.display()), e);
    let error = match e.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => error.hint(
            "it does not run, or with another configuration: `/etc/init.d/tproxyd start`, or name its file by --config",
        ),
        ErrorKind::PermissionDenied => error.hint("only root and the daemon's user may ask"),
        ErrorKind::WouldBlock => error.hint("it runs, but takes no questions: see its log"),
        _ => error,
    };
    Failure::Failed(error.to_string())
}

/// Standard output. Whoever reads it may stop early (`| head`), which is no error.
pub(super) struct Output(io::BufWriter<io::StdoutLock<'static>>);

impl Output {
    pub(super) fn new() -> Output {
        Output(io::BufWriter::new(io::stdout().lock()))
    }

    pub(super) fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.0.write_all(text.as_bytes()).map_err(|e| cut(&e))
    }

    pub(super) fn flush(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|e| cut(&e))
    }
}

fn cut(e: &io::Error) -> Failure {
    match e.kind() {
        ErrorKind::BrokenPipe => Failure::NobodyReads,
        _ => Failure::Failed(Error::new("write to standard output", e).to_string()),
    }
}

pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = Output::new();
    out.write(text)?;
    out.flush()
}
