//! The load of `ci/bench`: clients that measure, the server that they talk to, and a SOCKS5 server between.
//!
//! One static program for every part, of one thread each, so that it runs in an emulated router too, where two runs of the same
//! program execute the same instructions. It needs no other crates than the daemon's tests.

#![allow(clippy::disallowed_methods, reason = "it measures, so it reads the clock")]

#[cfg(feature = "shadowsocks")]
mod ciphers;
mod client;
mod machine;
mod measure;
mod report;
mod server;
mod socks;
mod wire;

use std::net::SocketAddr;
use std::process::ExitCode;

const USAGE: &str = "\
load serve ADDR:PORT                              answers TCP (bulk, short connections) and echoes UDP
load socks ADDR:PORT                              a SOCKS5 server without passwords: CONNECT and UDP ASSOCIATE
load bulk ADDR:PORT up|down MIB STREAMS [MBIT]    MIB in all over STREAMS connections, at MBIT/s in all if given
load short ADDR:PORT COUNT CONCURRENT             connections: 128 bytes each way, close
load datagrams ADDR:PORT COUNT SIZE WINDOW FLOWS  UDP round trips, WINDOW under way, from FLOWS ports in turn
load ciphers TIMES                                seals 48 KB with each method of Shadowsocks
load seed                                         gives the kernel the randomness that an emulated machine lacks
load nic DEVICE tso|gso|gro on|off                what a network device takes off the kernel's hands
load report here|emulated FIGURES SVG             tables of what was measured, and a chart
load check LIMITS FIGURES                         fails if a figure passes its limit
Environment: LOAD_PIDS=\"PID…\" processes whose time is told too; LOAD_SOCKS=ADDR:PORT the client itself speaks SOCKS5 to that;
LOAD_SETTLE_MS=50 how long to wait for what is done late. One line of figures is printed: names and numbers in turn.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("load {}: {reason}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String, String> {
    // many connections at once; where the limit can't be raised, what fails will say so
    let _ = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most));
    let io = |e: std::io::Error| e.to_string();
    match *words {
        ["serve", here] => server::serve(address(here)?).map_err(io),
        ["socks", here] => socks::serve(address(here)?).map_err(io),
        ["bulk", to, way, mib, streams] => client::bulk(address(to)?, is_up(way)?, number(mib)?, number(streams)?, 0),
        ["bulk", to, way, mib, streams, rate] => {
            client::bulk(address(to)?, is_up(way)?, number(mib)?, number(streams)?, number(rate)?)
        }
        ["short", to, count, concurrent] => client::short(address(to)?, number(count)?, number(concurrent)?),
        ["datagrams", to, count, size, window, flows] => {
            client::datagrams(address(to)?, number(count)?, number(size)?, number(window)?, number(flows)?)
        }
        #[cfg(feature = "shadowsocks")]
        ["ciphers", times] => ciphers::sealed(number(times)?),
        ["seed"] => machine::seed().map_err(io),
        ["nic", device, feature, state] => machine::nic(device, feature, state == "on").map_err(io),
        ["report", "here", figures, svg] => report::here(figures.as_ref(), svg.as_ref()),
        ["report", "emulated", figures, svg] => report::emulated(figures.as_ref(), svg.as_ref()),
        ["check", limits, figures] => report::check(limits.as_ref(), figures.as_ref()),
        _ => Err(USAGE.to_owned()),
    }
}

fn is_up(word: &str) -> Result<bool, String> {
    match word {
        "up" => Ok(true),
        "down" => Ok(false),
        _ => Err(format!("'{word}' is neither up nor down")),
    }
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("'{word}' is no number"))
}

fn address(word: &str) -> Result<SocketAddr, String> {
    word.parse().map_err(|_| format!("'{word}' is no address with a port"))
}
