//! The commands of the contract. No defaults of options here: the configuration owns those.

mod ask;
mod decides;
mod explain;
mod machine;
mod probe;
mod sessions;
mod sets;
mod status;
mod tree;
mod units;

use crate::daemon;
use crate::sys::fatal;
use argh::FromArgs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Where the configuration is unless `--config` says otherwise.
const DEFAULT_CONFIG: &str = "/etc/config/tproxyd";

/// Transparent proxy daemon: catches TCP and UDP that passes this router, and relays it where a rule says.
#[derive(FromArgs)]
struct Arguments {
    /// print version, target and build features
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Command {
    Run(Run),
    Check(machine::Check),
    Rules(machine::Rules),
    Clear(machine::Clear),
    Status(ask::Status),
    Sessions(sessions::Sessions),
    Clients(ask::Clients),
    Metrics(ask::Metrics),
    Kick(ask::KickCommand),
    Reload(ask::Reload),
    Explain(explain::Explain),
    Events(ask::Events),
    Sets(sets::Sets),
}

/// Run in the foreground. Rules and policy routes are installed once the sockets listen, and removed on SIGTERM; SIGHUP
/// reloads the configuration.
#[derive(FromArgs)]
#[argh(subcommand, name = "run", example = "{command_name} --config /etc/config/tproxyd")]
struct Run {
    /// configuration file (default: /etc/config/tproxyd; -: standard input)
    #[argh(option, default = "PathBuf::from(DEFAULT_CONFIG)")]
    config: PathBuf,
    /// leave netfilter and routes alone
    #[argh(switch)]
    no_rules: bool,
}

/// Why a command did not do what was asked; the text is for standard error.
enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// It failed at run time.
    Failed(String),
    /// Whoever read the output has stopped reading.
    NobodyReads,
}

/// Status 1: it failed at run time.
const FAILED: u8 = 1;

/// Status 2: the command line is wrong.
const WRONG_USAGE: u8 = 2;

/// Does what the command line asks.
pub fn main() -> ExitCode {
    fatal::tell_of_traps();
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let parsed = match Arguments::from_args(&["tproxyd"], &words) {
        Ok(parsed) => parsed,
        Err(early) => {
            return match early.status {
                Ok(()) => {
                    println!("{}", early.output.trim_end());
                    ExitCode::SUCCESS
                }
                Err(()) => {
                    eprintln!("{}\nRun tproxyd --help for more information.", early.output.trim_end());
                    ExitCode::from(WRONG_USAGE)
                }
            };
        }
    };
    if parsed.version {
        println!("tproxyd {} ({}, {})", env!("CARGO_PKG_VERSION"), target(), features());
        return ExitCode::SUCCESS;
    }
    let Some(command) = parsed.command else {
        eprintln!("no command given\nRun tproxyd --help for more information.");
        return ExitCode::from(WRONG_USAGE);
    };
    let done = match command {
        Command::Run(run) => return daemon::run(&daemon::Options { config: run.config, rules: !run.no_rules }),
        Command::Check(check) => check.run(),
        Command::Rules(rules) => rules.run(),
        Command::Clear(clear) => clear.run(),
        Command::Status(status) => status.run(),
        Command::Sessions(sessions) => sessions.run(),
        Command::Clients(clients) => clients.run(),
        Command::Metrics(metrics) => metrics.run(),
        Command::Kick(kick) => kick.run(),
        Command::Reload(reload) => reload.run(),
        Command::Explain(explain) => explain.run(),
        Command::Events(events) => events.run(),
        Command::Sets(sets) => sets.run(),
    };
    match done {
        Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Err(Failure::Usage(why)) => {
            eprintln!("{why}");
            ExitCode::from(WRONG_USAGE)
        }
        Err(Failure::Failed(why)) => {
            eprintln!("{why}");
            ExitCode::from(FAILED)
        }
    }
}

fn target() -> String {
    let endian = if cfg!(target_endian = "big") { ", big endian" } else { "" };
    format!("{}-{}{endian}", std::env::consts::ARCH, std::env::consts::OS)
}

fn features() -> String {
    let all = [
        ("quic", cfg!(feature = "quic")),
        ("sandbox", crate::sys::sandbox::BUILT),
        ("shadowsocks", cfg!(feature = "shadowsocks")),
        ("watch", cfg!(feature = "watch")),
    ];
    let built: Vec<&str> = all.into_iter().filter(|(_, built)| *built).map(|(name, _)| name).collect();
    if built.is_empty() { "no optional features".into() } else { format!("with {}", built.join(", ")) }
}
