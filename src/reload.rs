//! Changing what runs: a new configuration is read, checked and prepared, the rules are swapped in one transaction, and
//! only then is it put in force. The loop never waits for the helper in between.

use crate::config::{self, Backend, Config};
use crate::control::{Outcome, Taken};
use crate::error::Error;
use crate::event_loop::{Engine, Prepared};
use crate::helper::{Answer, Event, Helper, Request};
use crate::netfilter::verdict::{self, By};
use crate::netfilter::{self, Facts, Installation, ServerAddress, Surroundings};
use crate::policy::Proto;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub mod mending;

/// The rules in force, and the helper that keeps them.
pub struct Rules {
    helper: Helper,
    installed: Installed,
    /// dnsmasq has lines of ours.
    noted: bool,
}

/// What was last installed.
#[derive(Debug, Clone)]
pub struct Installed {
    facts: Facts,
    servers: Vec<(Proto, SocketAddr)>,
    /// Which rules held, by the clock.
    hours: Vec<bool>,
}

impl Rules {
    /// Rules that [`Self::install`] has put in place.
    pub fn new(helper: Helper, installed: Installed) -> Rules {
        Rules { helper, installed, noted: false }
    }

    /// Renders and installs the rules of `config`, waiting for it: at the start only.
    ///
    /// # Errors
    /// What could not be put in place; nothing is then.
    pub fn install(
        helper: &mut Helper,
        config: &Config,
        servers: &[(Proto, SocketAddr)],
        patience: Duration,
    ) -> Result<Installed, Error> {
        let (networks, devices) = netfilter::questions(config);
        let found = match helper.call(Request::Look { networks, devices }, patience)? {
            Answer::Surroundings(found) => found,
            other => return Err(unexpected(&other)),
        };
        let facts = Facts::new(config, &found, &addresses(servers));
        warn(&facts, config);
        // before the rules: those by TPROXY would lose what comes through a bridge
        if let Err(e) = helper.call(Request::Spare { devices: facts.by_tproxy(config) }, patience) {
            log::warn!("{e}; what comes through a bridge may not reach the process");
        }
        helper.call(install_request(config, &facts), patience)?;
        Ok(Installed { facts, servers: servers.to_vec(), hours: config.hours() })
    }

    /// The device of a network, if it was up when the rules were installed.
    pub fn device_of(&self, network: &str) -> Option<String> {
        self.installed.facts.device_of(network)
    }

    /// The helper, for the stop.
    pub fn into_helper(self) -> Helper {
        self.helper
    }

    /// Asks the helper for something else.
    ///
    /// # Errors
    /// It is gone, or has too much to do.
    pub fn submit(&mut self, request: Request) -> Result<u32, Error> {
        self.helper.submit(request)
    }

    /// Has dnsmasq note addresses for `config`, or for none of its rules any more.
    pub fn tell_dnsmasq(&mut self, config: &Config) {
        // dnsmasq notes addresses in sets of nftables
        let wanted = config.globals.dnsmasq && self.installed.facts.backend != Backend::Iptables;
        if !wanted && !self.noted {
            return;
        }
        self.noted = wanted;
        let early_reject = self.installed.facts.early_reject;
        let lines = if wanted { netfilter::names::lines(config, early_reject, &mut open_list) } else { String::new() };
        if let Err(e) = self.helper.submit(Request::Note { lines }) {
            log::warn!("{e}; dnsmasq notes the addresses of names as before");
        }
    }

    /// Has live flows get the rules that are in the kernel now, as far as rules alone can't; after a reload if that is wanted.
    fn revise(&mut self, config: &Config) {
        if config.globals.reclassify {
            self.revise_flows(config);
        }
    }

    fn revise_flows(&mut self, config: &Config) {
        if self.installed.facts.backend == Backend::Iptables || !config.globals.kernel_verdicts {
            return;
        }
        if let Some(mark) = netfilter::decided_mark(config).filter(|_| self.may_take_udp(config))
            && let Err(e) = self.helper.submit(Request::Revise(mark))
        {
            log::warn!("{e}; UDP flows that the kernel decided go on as before");
        }
        if let Err(e) = self.helper.submit(Request::Reclaim) {
            log::warn!("{e}; flows that are offloaded go on as before");
        }
    }

    /// True if the process is given UDP flows. What is for the kernel's verdicts alone needs no new beginning.
    fn may_take_udp(&self, config: &Config) -> bool {
        let reject = self.installed.facts.early_reject;
        let rules = config.rules.iter().filter(|rule| rule.active && rule.on);
        let by = rules.map(|rule| verdict::of_rule(config, reject, rule));
        by.chain([verdict::of_default(config, reject)]).any(|[_, udp]| udp == By::Process)
    }

    /// Has `br_netfilter` kept from the bridges of the listeners that there are now.
    fn spare_bridges(&mut self, config: &Config, facts: &Facts) {
        if let Err(e) = self.helper.submit(Request::Spare { devices: facts.by_tproxy(config) }) {
            log::warn!("{e}; what comes through a bridge may not reach the process");
        }
    }

    /// Whether dnsmasq has been told of names.
    pub fn has_told_dnsmasq(&self) -> bool {
        self.noted
    }

    /// What the helper has to say.
    pub fn next_event(&mut self) -> Option<Event> {
        self.helper.next_event()
    }

    /// Has the rules loaded that hold now, if those in the kernel are others. Returns the number of the request.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    pub fn follow_hours(&mut self, config: &Config) -> Result<Option<u32>, Error> {
        if config.hours() == self.installed.hours {
            return Ok(None);
        }
        let number = self.helper.submit(install_request(config, &self.installed.facts))?;
        self.installed.hours = config.hours();
        Ok(Some(number))
    }

    /// The kernel has the rules that hold now: so shall live flows.
    pub fn hours_followed(&mut self, config: &Config) {
        self.revise_flows(config);
    }

    /// The kernel did not take them: they are to be loaded again.
    pub fn forget_hours(&mut self) {
        self.installed.hours.clear();
    }

    /// Passes `servers` by, if they are not those of before.
    pub fn update_servers(&mut self, config: &Config, servers: &[(Proto, SocketAddr)]) {
        if servers == self.installed.servers {
            return;
        }
        self.installed.servers = servers.to_vec();
        self.installed.facts.servers = addresses(servers);
        let rules = netfilter::render_servers(config, &self.installed.facts);
        if let Err(e) = self.helper.submit(Request::Update { rules }) {
            log::warn!("{e}; flows of clients to the outbounds' new addresses may be intercepted");
        }
    }
}

/// For a process that leaves the rules to others: asks for the networks itself, if a rule names some.
pub fn resolve_networks_alone(engine: &mut Engine) {
    let config = engine.config();
    let named = config.rules.iter().any(|rule| !rule.network.is_empty());
    match named.then(|| netfilter::commands::facts_now(config)) {
        Some(Ok(facts)) => engine.resolve_networks(&|name| facts.device_of(name)),
        Some(Err(e)) => {
            log::warn!("{e}; rules with `network` don't match");
            engine.resolve_networks(&|_| None);
        }
        None => engine.resolve_networks(&|_| None),
    }
}

fn open_list(path: &Path) -> io::Result<Box<dyn BufRead>> {
    Ok(Box::new(BufReader::new(File::open(path)?)))
}

fn install_request(config: &Config, facts: &Facts) -> Request {
    Request::Install {
        rules: netfilter::render(config, facts),
        installation: Installation { backend: facts.backend, ..Installation::new(&config.globals) },
        on_failure: config.globals.on_failure,
    }
}

fn addresses(servers: &[(Proto, SocketAddr)]) -> Vec<ServerAddress> {
    servers.iter().map(|(proto, address)| ServerAddress { tcp: *proto == Proto::Tcp, address: *address }).collect()
}

fn warn(facts: &Facts, config: &Config) {
    for warning in facts.warnings(config) {
        log::warn!("{warning}");
    }
}

fn unexpected(answer: &Answer) -> Error {
    Error::new("understand the privileged helper", format!("it answered {answer:?}"))
}

/// One reload at a time; one more that was asked for meanwhile follows it.
pub struct Reload {
    path: PathBuf,
    step: Step,
    again: bool,
    /// How many have come to their end.
    ended: u32,
    /// What came of those, for whoever asked for them: two at most.
    outcomes: VecDeque<Outcome>,
}

enum Step {
    Idle,
    /// The helper opens the file.
    Reading(u32),
    /// The helper looks at networks and links.
    Looking(u32, Box<Prepared>),
    /// The helper loads the rules.
    Installing(u32, Box<Prepared>, Installed),
}

impl Reload {
    /// Reloads from `path`.
    pub fn new(path: PathBuf) -> Reload {
        Reload { path, step: Step::Idle, again: false, ended: 0, outcomes: VecDeque::new() }
    }

    /// Starts a reload, or notes that one more is wanted. Returns the number of the reload that will have read the file as
    /// it is now; its outcome may be there at once.
    pub fn begin(&mut self, engine: &mut Engine, rules: Option<&mut Rules>) -> u32 {
        let number = self.ended.wrapping_add(1);
        if !matches!(self.step, Step::Idle) {
            self.again = true;
            return number.wrapping_add(1);
        }
        match rules {
            Some(rules) => match rules.helper.submit(Request::ReadConfig) {
                Ok(number) => self.step = Step::Reading(number),
                Err(e) => self.end(Err(e.to_string())),
            },
            None => {
                let taken = File::open(&self.path)
                    .map_err(|e| Error::new(format!("read {}", self.path.display()), &e).to_string())
                    .and_then(|file| self.parse(file))
                    .and_then(|config| engine.prepare(config).map_err(|e| e.to_string()))
                    .and_then(|prepared| engine.commit(prepared).map_err(|e| e.to_string()));
                resolve_networks_alone(engine);
                self.end(taken.map(|changed| Taken { changed, warnings: engine.config().warnings.clone() }));
            }
        }
        number
    }

    /// True while one is under way.
    pub fn is_busy(&self) -> bool {
        !matches!(self.step, Step::Idle)
    }

    /// What came of a reload, once for each.
    pub fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// The helper has ended: what it was asked for will not come.
    pub fn give_up(&mut self) {
        if !matches!(self.step, Step::Idle) {
            self.again = false;
            self.end(Err("the privileged helper has ended; restart tproxyd".into()));
        }
    }

    fn end(&mut self, result: Result<Taken, String>) {
        match &result {
            Ok(taken) => log::info!("reloaded; changed: {}", taken.changed.join(", ")),
            Err(why) => log::error!("configuration not taken, the running one goes on:\n{why}"),
        }
        self.step = Step::Idle;
        self.ended = self.ended.wrapping_add(1);
        self.outcomes.push_back(Outcome { ticket: self.ended, result });
    }

    /// Takes the helper's answer to request `number`.
    pub fn go_on(&mut self, number: u32, answer: Result<Answer, Error>, engine: &mut Engine, rules: &mut Rules) {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        let awaited = match &step {
            Step::Idle => None,
            Step::Reading(number) | Step::Looking(number, _) | Step::Installing(number, ..) => Some(*number),
        };
        if awaited != Some(number) {
            // an update of the servers, for which nobody waits
            self.step = step;
            if let Err(e) = answer {
                log::warn!("{e}");
            }
            return;
        }
        match self.next_step(step, answer, engine, rules) {
            Ok(ControlFlow::Continue(next)) => self.step = next,
            Ok(ControlFlow::Break(taken)) => self.end(Ok(taken)),
            Err(why) => self.end(Err(why)),
        }
        if matches!(self.step, Step::Idle) && std::mem::take(&mut self.again) {
            self.begin(engine, Some(rules));
        }
    }

    fn next_step(
        &self,
        step: Step,
        answer: Result<Answer, Error>,
        engine: &mut Engine,
        rules: &mut Rules,
    ) -> Result<ControlFlow<Taken, Step>, String> {
        let answer = answer.map_err(|e| e.to_string())?;
        match (step, answer) {
            (Step::Reading(_), Answer::File(file)) => {
                let prepared = engine.prepare(self.parse(file)?).map_err(|e| e.to_string())?;
                let (networks, devices) = netfilter::questions(prepared.config());
                let number = rules.helper.submit(Request::Look { networks, devices }).map_err(|e| e.to_string())?;
                Ok(ControlFlow::Continue(Step::Looking(number, Box::new(prepared))))
            }
            (Step::Looking(_, prepared), Answer::Surroundings(found)) => {
                let config = prepared.config();
                let installed = rules.installed.next(config, &found);
                warn(&installed.facts, config);
                let request = install_request(config, &installed.facts);
                let number = rules.helper.submit(request).map_err(|e| e.to_string())?;
                Ok(ControlFlow::Continue(Step::Installing(number, prepared, installed)))
            }
            (Step::Installing(_, prepared, installed), Answer::Done) => {
                rules.installed = installed;
                let changed = engine.commit(*prepared).map_err(|e| e.to_string())?;
                engine.resolve_networks(&|name| rules.device_of(name));
                rules.update_servers(engine.config(), &engine.server_addresses());
                let config = engine.config();
                rules.tell_dnsmasq(config);
                rules.revise(config);
                let facts = rules.installed.facts.clone();
                rules.spare_bridges(config, &facts);
                let mut warnings = config.warnings.clone();
                warnings.extend(rules.installed.facts.warnings(config));
                Ok(ControlFlow::Break(Taken { changed, warnings }))
            }
            (_, other) => Err(unexpected(&other).to_string()),
        }
    }

    /// Reads a configuration from `file`, and says what is odd in it.
    fn parse(&self, file: File) -> Result<Config, String> {
        let mut bytes = Vec::new();
        let most = config::LARGEST_FILE as u64 + 1;
        let name = self.path.display().to_string();
        file.take(most).read_to_end(&mut bytes).map_err(|e| Error::new(format!("read {name}"), &e).to_string())?;
        let env = config::load::this_machine();
        let mut config = config::parse(&name, &bytes, &env, &mut open_list).map_err(|errors| errors.to_string())?;
        config.keep_hours(&config::load::moment());
        for warning in &config.warnings {
            log::warn!("{warning}");
        }
        Ok(config)
    }
}

impl Installed {
    /// Whether `next` has other devices or prefixes.
    fn is_elsewhere_than(&self, next: &Installed) -> bool {
        let place = |facts: &Facts| Facts { servers: Vec::new(), ..facts.clone() };
        place(&self.facts) != place(&next.facts)
    }

    /// What is to be installed after `self` for `config`. Flows of devices that no listener names any more live on, so
    /// their packets still lead to the process.
    fn next(&self, config: &Config, found: &Surroundings) -> Installed {
        let mut facts = Facts::new(config, found, &addresses(&self.servers));
        let is_named = |device: &String| facts.devices.iter().flatten().any(|named| named == device);
        let mut former: Vec<String> =
            self.facts.devices.iter().flatten().chain(&self.facts.former_devices).cloned().collect();
        former.retain(|device| !is_named(device));
        former.sort_unstable();
        former.dedup();
        facts.former_devices = former;
        Installed { facts, servers: self.servers.clone(), hours: config.hours() }
    }
}
