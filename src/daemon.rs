//! `tproxyd run`: from the configuration to the loop, and in reverse order at the end.

mod hours;
mod ledger;
mod sandbox;
mod script;

use crate::config::{self, Config};
use crate::control::{Control, Outcome, Scrapes};
use crate::error::Error;
use crate::event_loop::{Engine, LISTENERS_MAX, events, number};
use crate::helper::{Event, Helper, Request};
use crate::log_sink;
use crate::netfilter::{self, bridges::record_beside};
use crate::reload::mending::Mending;
use crate::reload::{Reload, Rules, resolve_networks_alone};
use crate::session::pipes::Pipes;
use crate::stats::events::Kind;
use crate::store::timers::Tick;
use crate::sys::memory;
use crate::sys::process::{self, Signals, Wish};
use hours::Hours;
use ledger::Ledger;
use sandbox::Refusals;
use script::Scripts;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// What the command line asks of `run`.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Whether netfilter and routes are ours to set up.
    pub rules: bool,
}

/// Status 1: it failed at run time.
const FAILED: u8 = 1;

/// Status 2: the configuration is wrong.
const MISCONFIGURED: u8 = 2;

/// Descriptors besides those of sessions and listeners: epoll, signals, raw sockets, control, resolver, log, helper.
const REST: u64 = 64;

/// What the largest tables can need.
const MOST_DESCRIPTORS: u64 = 4 * 16_384 + 500;

/// The user that the network process runs as, where there is one.
const USER: &str = "tproxyd";

/// How long the helper may be silent at start and stop. A rule set of 250,000 networks takes nft two seconds on a fast
/// machine and twenty on a router.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the helper has for its goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Runs in the foreground until a signal ends it.
pub fn run(options: &Options) -> ExitCode {
    // first, since `auto` tables keep within what can be had
    let _ = process::raise_descriptor_limit(MOST_DESCRIPTORS);
    let config = match config::load(&options.config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(MISCONFIGURED);
        }
    };
    if !config.globals.enabled {
        println!("tproxyd is not enabled: `option enabled '1'` in {} starts it", options.config.display());
        return ExitCode::SUCCESS;
    }
    log_sink::start(config.globals.log_level);
    leave_last_words();
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    match Daemon::start(config, options).and_then(|mut daemon| daemon.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("{e}");
            ExitCode::from(FAILED)
        }
    }
}

/// Has a panic, which is a bug, told to the log before it ends the process; in a build that could go on as well.
/// What becomes of traffic is for the helper to say and to do.
fn leave_last_words() {
    std::panic::set_hook(Box::new(|bug| {
        log::error!("tproxyd ends by a bug, please report it: {}", bug.to_string().replace('\n', " "));
        std::process::abort();
    }));
}

/// Descriptors that `config` can need at once: every table full, all of it through proxies.
pub fn descriptors_wanted(config: &Config) -> u64 {
    let globals = &config.globals;
    let sessions = u64::from(globals.tcp_sessions) + u64::from(globals.udp_sessions);
    2 * sessions
        + Pipes::descriptors(Pipes::suiting(globals.relay_memory))
        + 2 * LISTENERS_MAX as u64
        + spares(config)
        + REST
}

/// Connections to servers that are kept open in advance.
fn spares(config: &Config) -> u64 {
    config.outbounds.iter().map(|outbound| u64::from(outbound.spare)).sum()
}

/// Descriptors without which one table alone could not be filled. Between this and [`descriptors_wanted`] the tables share
/// what there is: connections wait, and the longest idle UDP mapping makes room.
pub fn descriptors_needed(config: &Config) -> u64 {
    let globals = &config.globals;
    let largest = (2 * u64::from(globals.tcp_sessions)).max(globals.udp_sessions.into());
    largest + 2 * config.listeners.len() as u64 + spares(config) + REST
}

/// Raises the descriptor limit as far as `config` can use it.
///
/// # Errors
/// Too few can be had, and what to do about it.
fn raise_descriptor_limit(config: &Config) -> Result<(), Error> {
    let (wanted, needed) = (descriptors_wanted(config), descriptors_needed(config));
    let have = process::raise_descriptor_limit(wanted).map_err(|e| Error::new("read the descriptor limit", &e))?;
    let remedy = format!(
        "raise it to {wanted} (`procd_set_param limits nofile`, `ulimit -n`), or lower tcp_sessions and udp_sessions"
    );
    if have < needed {
        let why = format!("the descriptor limit is {have}, and tcp_sessions and udp_sessions need {needed}");
        return Err(Error::new("serve the tables asked for", why).hint(remedy));
    }
    if have < wanted {
        log::warn!(
            "the descriptor limit is {have}, and full tables can need {wanted}: they share what there is; {remedy}"
        );
    }
    Ok(())
}

/// The listener of `option metrics`, if there is to be one, watched.
fn open_scrapes(engine: &Engine) -> Result<Option<Scrapes>, Error> {
    let Some(address) = engine.config().globals.metrics else { return Ok(None) };
    let scrapes = Scrapes::open(address, number::SCRAPE_CLIENT)?;
    engine.watch(scrapes.fd(), number::METRICS)?;
    Ok(Some(scrapes))
}

struct Daemon {
    engine: Engine,
    signals: Signals,
    /// `None` under `--no-rules`.
    rules: Option<Rules>,
    reload: Reload,
    control: Control,
    /// `option metrics`.
    scrapes: Option<Scrapes>,
    scripts: Scripts,
    mending: Option<Mending>,
    hours: Hours,
    refusals: Refusals,
    ledger: Ledger,
    /// Events of which followers have been told.
    told: u64,
}

impl Daemon {
    /// Puts everything in place, or nothing.
    fn start(config: Config, options: &Options) -> Result<Daemon, Error> {
        // the helper first: it must not hold a copy of the tables, and keeps the privileges that are given up below
        let mut helper = if options.rules {
            Some(Helper::start(&options.config, &record_beside(&config.globals.control))?)
        } else {
            None
        };
        let started = Daemon::start_with(&mut helper, config, options);
        if started.is_err()
            && let Some(helper) = helper
        {
            helper.goodbye(GOODBYE);
        }
        started
    }

    fn start_with(helper: &mut Option<Helper>, config: Config, options: &Options) -> Result<Daemon, Error> {
        raise_descriptor_limit(&config)?;
        let signals = Signals::open().map_err(|e| Error::new("receive signals by a descriptor", &e))?;
        // before privileges are given up, since its directory may have to be made; and before anything else, since it says
        // best that another daemon runs
        let control = Control::open(&config.globals.control, process::user_ids(USER).filter(|_| process::is_root()))?;
        let mut engine = Engine::new(config, netfilter::kernel_families())?;
        engine.read_from(&options.config);
        engine.watch(signals.as_raw_fd(), number::SIGNALS)?;
        engine.watch(control.fd(), number::CONTROL)?;
        let scrapes = open_scrapes(&engine)?;
        process::drop_privileges(process::user_ids(USER)).map_err(|e| Error::new("give up privileges", &e))?;
        sandbox::enter(engine.config().globals.sandbox);
        let reload = Reload::new(options.config.clone());
        let mut rules = None;
        if let Some(mut ready) = helper.take() {
            let installed = engine
                .watch(ready.fd(), number::HELPER)
                .and_then(|()| Rules::install(&mut ready, engine.config(), &engine.server_addresses(), PATIENCE));
            match installed {
                Ok(installed) => {
                    let mut installed = Rules::new(ready, installed);
                    installed.tell_dnsmasq(engine.config());
                    engine.resolve_networks(&|name| installed.device_of(name));
                    rules = Some(installed);
                }
                Err(e) => {
                    *helper = Some(ready);
                    return Err(e);
                }
            }
        }
        if rules.is_none() {
            resolve_networks_alone(&mut engine);
        }
        let mending = rules.is_some().then(|| Mending::watch(&engine));
        let place = if rules.is_some() { "rules in place" } else { "rules are not its own" };
        let listeners = engine.config().listeners.len();
        log::info!("tproxyd {} ready: {listeners} listening, {place}", env!("CARGO_PKG_VERSION"));
        Ledger::load(&mut engine);
        let mut hours = Hours::default();
        hours.note();
        hours.run(&mut engine, rules.as_mut(), &reload);
        let scripts = Scripts::default();
        let refusals = Refusals::default();
        Ok(Daemon {
            engine,
            signals,
            rules,
            reload,
            control,
            scrapes,
            scripts,
            mending,
            hours,
            refusals,
            ledger: Ledger::default(),
            told: 0,
        })
    }

    fn serve(&mut self) -> Result<(), Error> {
        let mut own = Vec::with_capacity(16);
        let mut events = events();
        memory::discard_stack();
        loop {
            let now = self.engine.moment();
            let scrapes = self.scrapes.as_ref().and_then(|scrapes| scrapes.deadline(now));
            let mending = self.mending.as_ref().and_then(Mending::deadline);
            let own_work = Tick::soonest(self.control.deadline(), self.scripts.deadline());
            let own_work = Tick::soonest(own_work, self.ledger.deadline());
            let until = Tick::soonest(own_work, Tick::soonest(scrapes, mending));
            let moved = self.engine.turn(&mut events, until, &mut own).map_err(|e| Error::new("wait for events", &e));
            match moved {
                Ok(false) => {}
                Ok(true) => self.pass_servers_by(),
                Err(e) => {
                    self.stop();
                    return Err(e);
                }
            }
            for number in own.drain(..) {
                match number {
                    number::SIGNALS => {
                        while let Ok(Some(wish)) = self.signals.take() {
                            match wish {
                                Wish::Stop => {
                                    log::info!("stopping");
                                    self.stop();
                                    return Ok(());
                                }
                                Wish::Reload => {
                                    self.reload.begin(&mut self.engine, self.rules.as_mut());
                                }
                            }
                        }
                    }
                    number::HELPER => {
                        while let Some(event) = self.rules.as_mut().and_then(Rules::next_event) {
                            self.helper_said(event);
                        }
                    }
                    number::NEWS | number::NEWS_OF_TABLES => {
                        let now = self.engine.tick();
                        self.mending.iter_mut().for_each(|mending| mending.note(now));
                    }
                    number::HOURS => self.hours.ring(),
                    number::CONTROL => self.control.note_connections(),
                    number::METRICS => {
                        if let Some(scrapes) = &mut self.scrapes {
                            scrapes.note_connections();
                        }
                    }
                    number::SCRAPE.. => {
                        let now = self.engine.tick();
                        if let Some(scrapes) = &mut self.scrapes {
                            scrapes.ready(usize::from(number - number::SCRAPE), &self.engine, now);
                        }
                    }
                    _ => {
                        let n = usize::from(number.wrapping_sub(number::CONTROL_CLIENT));
                        let now = self.engine.tick();
                        self.control.ready(n, &mut self.engine, now);
                    }
                }
            }
            if let (Some(mending), Some(rules)) = (&mut self.mending, &mut self.rules) {
                mending.run(&self.engine, rules, &self.reload, self.engine.moment());
            }
            self.serve_control();
            self.hours.run(&mut self.engine, self.rules.as_mut(), &self.reload);
            self.refusals.tell();
            self.ledger.run(&mut self.engine);
            self.tell();
        }
    }

    /// Tells whoever wants to know of what has happened in this turn.
    fn tell(&mut self) {
        let next = self.engine.events().next();
        if next == self.told && self.scripts.deadline().is_none() {
            return;
        }
        let now = self.engine.tick();
        if next != self.told {
            self.told = next;
            self.control.tell(&mut self.engine, now);
        }
        let script = self.engine.config().globals.on_event.as_deref();
        self.scripts.run(script, self.engine.events(), self.rules.as_mut(), now);
    }

    /// Goes on with what control clients have asked for.
    fn serve_control(&mut self) {
        if self.control.deadline().is_some() {
            let now = self.engine.tick();
            self.control.run(&mut self.engine, now);
            if self.control.wants_reload() {
                let ticket = self.reload.begin(&mut self.engine, self.rules.as_mut());
                self.control.reload_begun(ticket);
            }
        }
        if let Some(scrapes) = &mut self.scrapes {
            let now = self.engine.moment();
            if scrapes.deadline(now).is_some() {
                scrapes.run(&self.engine, now);
            }
        }
        while let Some(mut outcome) = self.reload.outcome() {
            self.hours.note();
            self.move_control(&mut outcome);
            self.move_scrapes(&mut outcome);
            match &outcome.result {
                Ok(taken) => self.engine.note_event(Kind::Reloaded, taken.changed.join(", ")),
                Err(why) => self.engine.note_event(Kind::ReloadFailed, why.lines().next().unwrap_or_default()),
            }
            self.control.reloaded(&outcome, &mut self.engine);
        }
    }

    /// The control socket follows a reload that names another.
    fn move_control(&mut self, outcome: &mut Outcome) {
        let Ok(taken) = &mut outcome.result else { return };
        let moved = self.control.move_to(&self.engine.config().globals.control, None).and_then(|moved| match moved {
            true => self.engine.watch(self.control.fd(), number::CONTROL),
            false => Ok(()),
        });
        if let Err(e) = moved {
            let warning = format!("{e}; it stays at {}", self.control.path().display());
            log::warn!("{warning}");
            taken.warnings.push(warning);
        }
    }

    /// So does the listener of `option metrics`.
    fn move_scrapes(&mut self, outcome: &mut Outcome) {
        let Ok(taken) = &mut outcome.result else { return };
        let wanted = self.engine.config().globals.metrics;
        if self.scrapes.as_ref().map(Scrapes::address) == wanted {
            return;
        }
        match open_scrapes(&self.engine) {
            Ok(scrapes) => self.scrapes = scrapes,
            Err(e) => {
                log::warn!("{e}");
                taken.warnings.push(e.to_string());
            }
        }
    }

    fn helper_said(&mut self, event: Event) {
        let Some(rules) = self.rules.as_mut() else { return };
        match event {
            Event::Answered(number, answer) if self.scripts.answered(number, &answer, self.engine.tick()) => {
                let script = self.engine.config().globals.on_event.as_deref();
                self.scripts.run(script, self.engine.events(), self.rules.as_mut(), self.engine.tick());
            }
            Event::Answered(number, answer) if self.mending.as_ref().is_some_and(|mending| mending.awaits(number)) => {
                let now = self.engine.tick();
                if let Some(mending) = &mut self.mending {
                    mending.go_on(answer, &mut self.engine, rules, &self.reload, now);
                }
            }
            Event::Answered(number, answer) if self.hours.answered(number, &answer, rules, self.engine.config()) => {}
            Event::Answered(number, answer) => self.reload.go_on(number, answer, &mut self.engine, rules),
            Event::Gone => {
                log::error!("the privileged helper has ended: rules stay as they are until tproxyd is restarted");
                self.reload.give_up();
                self.scripts.give_up();
                self.mending.iter_mut().for_each(Mending::give_up);
            }
        }
    }

    /// A name was looked up: the rules pass its new addresses by.
    fn pass_servers_by(&mut self) {
        if let Some(rules) = &mut self.rules {
            rules.update_servers(self.engine.config(), &self.engine.server_addresses());
        }
    }

    /// Rules first, so that new flows go straight out while the relayed ones end.
    fn stop(&mut self) {
        self.ledger.save(&mut self.engine);
        if let Some(rules) = self.rules.take() {
            let noted = rules.has_told_dnsmasq();
            let mut helper = rules.into_helper();
            if let Err(e) = helper.call(Request::Remove, PATIENCE) {
                log::error!("{e}");
            }
            self.engine.close_all();
            // delivery of relayed flows may have made entries since
            if let Err(e) = helper.call(Request::Forget, PATIENCE) {
                log::debug!("{e}");
            }
            if noted && let Err(e) = helper.call(Request::Note { lines: String::new() }, PATIENCE) {
                log::error!("{e}");
            }
            helper.goodbye(GOODBYE);
        } else {
            self.engine.close_all();
        }
    }
}
