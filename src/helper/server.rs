//! The helper's own process: takes orders one by one, until its daemon says goodbye or dies.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Answer;
use super::wire::{self, Order};
use crate::config::{Backend, Mark, OnFailure};
use crate::error::Error;
use crate::netfilter::bridges::Spared;
use crate::netfilter::dnsmasq::Notes;
use crate::netfilter::load::{self, Objects};
use crate::netfilter::names::NOTED;
use crate::netfilter::offload::Ageing;
use crate::netfilter::{self, Installation, TABLE, backend, conntrack, iptables, survey};
use crate::sys::passing::{self, NamespaceLock};
use crate::sys::process::{self, Child, fork_child};

/// How long a new helper waits for one that still cleans up after its dead daemon.
pub(super) const LONGEST_WAIT_FOR_OTHERS: Duration = Duration::from_secs(5);

/// The helper's whole life; returns its exit status.
pub(super) fn run(socket: OwnedFd, config: &Path, record: &Path) -> i32 {
    process::set_name(c"tproxyd-helper");
    let ready = process::ignore_group_signals()
        .map_err(|error| Error::new("prepare the privileged helper", error))
        .and_then(|()| lock_namespace());
    // Held until this process ends: whoever comes next must not have its rules taken away by us.
    let (hello, lock) = match ready {
        Ok(lock) => (Ok(Answer::Done), Some(lock)),
        Err(error) => (Err(error), None),
    };
    let mut helper = Server::new(socket, config.to_path_buf(), Spared::new(record));
    if helper.answer(wire::HELLO, hello).is_err() || lock.is_none() {
        return 1;
    }
    let in_order = helper.serve();
    if !in_order {
        helper.daemon_died();
    }
    0
}

fn lock_namespace() -> Result<NamespaceLock, Error> {
    let step = Duration::from_millis(10);
    let steps = LONGEST_WAIT_FOR_OTHERS.as_millis() / step.as_millis();
    for _ in 0..steps {
        match NamespaceLock::try_take(LOCK) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => std::thread::sleep(step),
            Err(error) => return Err(Error::new("lock this network namespace", error)),
        }
    }
    Err(Error::new("start", "another tproxyd runs in this network namespace")
        .hint("stop it first (/etc/init.d/tproxyd stop), or run this one in a namespace of its own"))
}

struct Server {
    socket: OwnedFd,
    config: PathBuf,
    /// What is in place now, and what becomes of it if the daemon dies.
    installed: Option<Installed>,
    /// The mark of what was installed last, even if it has been taken away.
    mark: Option<Mark>,
    /// The script that was started last, if it has not been seen to end.
    script: Option<Child>,
    /// What dnsmasq has been told.
    notes: Notes,
    /// The sets that it fills have been made anew since.
    notes_lost: bool,
    /// Offloaded flows come back to the rules, until then.
    ageing: Option<(Ageing, Instant)>,
    /// What `br_netfilter` is kept from.
    spared: Spared,
}

struct Installed {
    installation: Installation,
    on_failure: OnFailure,
    objects: Objects,
    /// The text, if it is iptables', which has no transaction over all of it.
    text: String,
    /// How many rules there are.
    rules: usize,
}

impl Server {
    fn new(socket: OwnedFd, config: PathBuf, spared: Spared) -> Server {
        let notes = Notes::default();
        Server {
            socket,
            config,
            installed: None,
            mark: None,
            script: None,
            notes,
            notes_lost: false,
            ageing: None,
            spared,
        }
    }

    /// True if the daemon said goodbye.
    fn serve(&mut self) -> bool {
        let mut buffer = vec![0; wire::LONGEST];
        loop {
            if !self.await_order() {
                continue;
            }
            let (length, file) = match passing::receive(self.socket.as_fd(), &mut buffer) {
                Ok((0, _)) => return false,
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let message = buffer.get(..length).unwrap_or_default();
            let Some((number, order)) = wire::read_request(message, file) else { return false };
            let goodbye = matches!(order, Order::Goodbye);
            let result = self.obey(order);
            let answered = self.answer(number, result);
            if goodbye || answered.is_err() {
                return goodbye;
            }
        }
    }

    /// False: it did something else meanwhile.
    fn await_order(&mut self) -> bool {
        let Some((_, until)) = &self.ageing else { return true };
        let left = until.saturating_duration_since(now());
        let came = passing::wait_readable(self.socket.as_fd(), left).unwrap_or(true);
        if !came {
            self.ageing = None;
        }
        came
    }

    fn reclaim(&mut self) -> Result<(), Error> {
        // once more: the time begins anew, and what was before them is known already
        self.ageing = None;
        self.ageing = Ageing::begin()?.map(|ageing| {
            let until = now() + ageing.lasts();
            (ageing, until)
        });
        Ok(())
    }

    fn answer(&self, number: u32, result: Result<Answer, Error>) -> std::io::Result<()> {
        let (message, file) = wire::write_answer(number, result);
        passing::send(self.socket.as_fd(), &message, file.as_ref().map(AsFd::as_fd))
    }

    fn obey(&mut self, order: Order) -> Result<Answer, Error> {
        match order {
            Order::ReadConfig => Ok(Answer::File(open_regular(&self.config)?)),
            Order::ReadFile(path) => {
                self.must_be_named(&path)?;
                Ok(Answer::File(open_regular(&path)?))
            }
            Order::Install { rules, installation, on_failure } => {
                self.install(rules, installation, on_failure).map(|()| Answer::Done)
            }
            Order::Update { rules } => self.update(rules).map(|()| Answer::Done),
            Order::Remove => self.remove().map(|()| Answer::Done),
            Order::Look { networks, devices } => netfilter::look(&networks, &devices).map(Answer::Surroundings),
            Order::Forget => match self.mark {
                Some(mark) => conntrack::delete_marked(mark).map(|_| Answer::Done),
                None => Ok(Answer::Done),
            },
            Order::Goodbye => Ok(Answer::Done),
            Order::Inspect => self.inspect(),
            Order::Note { lines } => {
                let lines = whole(lines).map_err(|error| Error::new("take the lines for dnsmasq", error))?;
                let anew = std::mem::take(&mut self.notes_lost);
                self.notes.put(&lines, anew).map(|()| Answer::Done)
            }
            // a mask of nothing would mean every flow of the router
            Order::Revise(mark) if mark.value == 0 => Err(Error::new("decide flows anew", "they carry no mark")),
            Order::Revise(mark) => conntrack::delete_marked_udp(mark).map(|_| Answer::Done),
            Order::Reclaim => self.reclaim().map(|()| Answer::Done),
            Order::Spare { devices } => self.spared.spare(&devices).map(|()| Answer::Done),
            Order::RunScript { path, environment } => self.run_script(&path, environment),
        }
    }

    /// In a process of its own, which watches over it: nothing here waits for a script.
    fn run_script(&mut self, path: &Path, environment: Vec<(String, String)>) -> Result<Answer, Error> {
        if self.script.is_some_and(|script| !script.reap()) {
            return Ok(Answer::Busy);
        }
        self.script = None;
        self.must_be_named(path)?;
        if let Some((name, _)) = environment.iter().find(|(name, _)| !SCRIPT_VARIABLES.contains(&name.as_str())) {
            return Err(Error::new(
                format!("run {}", path.display()),
                format!("{name} is nothing that a script is told"),
            ));
        }
        let failed = |error| Error::new(format!("run {}", path.display()), error);
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            let why = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(failed(why).hint(format!("chmod +x {}", path.display())));
        }
        let mut command = Command::new(path);
        command.env_clear().env("PATH", SCRIPT_PATH).envs(environment).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let keep = File::open("/dev/null").map_err(failed)?;
        let child = fork_child(keep.into(), |_| process::run_script(command, SCRIPT_LIMIT).unwrap_or(1));
        self.script = Some(child.map_err(failed)?);
        Ok(Answer::Done)
    }

    /// Routes first: a packet that a rule marks must find its way at once.
    fn install(&mut self, rules: File, new: Installation, on_failure: OnFailure) -> Result<(), Error> {
        let by_iptables = new.backend == Backend::Iptables;
        let rules = if by_iptables { iptables::only_ours(sent(rules)?)? } else { only_our_table(rules)? };
        let before = self.installed.take();
        let same_routes = before.as_ref().is_some_and(|before| before.installation.routes == new.routes);
        let nothing = Objects::default();
        let loaded = new.routes.install().and_then(|()| {
            let known = before.as_ref().map_or(&nothing, |before| &before.objects);
            let done = if by_iptables {
                let text = before.as_ref().map_or("", |before| &before.text);
                iptables::replace(&rules, text, new.routes.families).map(|count| (Objects::default(), count))
            } else {
                let count = rules.lines().filter(|line| line.starts_with("add rule ")).count();
                load::replace(&rules, known).map(|objects| (objects, count))
            };
            done.inspect_err(|_| {
                if !same_routes {
                    // The error that counts is nft's; what can't be undone is left to `clear`.
                    let _ = new.routes.remove();
                }
            })
        });
        match loaded {
            Ok((objects, count)) => {
                if let Some(other) = before.as_ref().map(|b| b.installation.backend).filter(|b| *b != new.backend) {
                    // What stays behind does what it did; `clear` finds it.
                    let _ = backend::remove_rules(other);
                }
                let known = before.as_ref().map_or(&nothing, |before| &before.objects);
                self.notes_lost |= objects.has_sets_beside(known, NOTED);
                if let Some(before) = before.filter(|_| !same_routes) {
                    // Only the new rules' marks matter now. What stays behind is harmless, and `clear` finds it.
                    let _ = before.installation.routes.remove();
                }
                self.mark = Some(new.routes.mark);
                let text = if by_iptables { rules } else { String::new() };
                self.installed = Some(Installed { installation: new, on_failure, objects, text, rules: count });
                Ok(())
            }
            Err(error) => {
                self.installed = before;
                if self.installed.is_none() {
                    // The error that counts is the first; `clear` finds what stays behind.
                    let _ = self.spared.put_back();
                }
                Err(error)
            }
        }
    }

    fn update(&mut self, rules: File) -> Result<(), Error> {
        match &mut self.installed {
            Some(installed) if installed.installation.backend == Backend::Iptables => {
                let rules = iptables::only_ours(sent(rules)?)?;
                installed.rules = iptables::replace(&rules, &installed.text, installed.installation.routes.families)?;
                installed.text = rules;
                Ok(())
            }
            _ => load::transaction(&only_our_table(rules)?),
        }
    }

    /// What has been taken away is not to be counted on by the next [`Server::install`].
    fn inspect(&mut self) -> Result<Answer, Error> {
        let Some(installed) = &mut self.installed else { return Ok(Answer::Done) };
        let turned_on = self.spared.damage();
        // where it can't be changed, that was said at the start
        let changed = (turned_on.is_some() || self.spared.is_behind()) && self.spared.spare_again().is_ok();
        if let Some(what) = turned_on.filter(|_| changed) {
            return Ok(Answer::Damaged(what));
        }
        match survey::damage(installed.rules, &installed.installation)? {
            None => Ok(Answer::Done),
            Some(what) => {
                installed.objects = Objects::default();
                Ok(Answer::Damaged(what))
            }
        }
    }

    fn remove(&mut self) -> Result<(), Error> {
        let Some(Installed { installation, .. }) = &self.installed else { return Ok(()) };
        match installation.remove().into_iter().next() {
            Some(error) => Err(error),
            None => {
                self.installed = None;
                self.spared.put_back()
            }
        }
    }

    /// The daemon has died. `direct`: traffic is to flow as if it weren't installed, and so without our mark on
    /// connection tracking entries, whose null NAT binding would keep them from being masqueraded. `block`: the rules
    /// stay, as their drop holds; the entries stay, too, since a flow without its mark would pass as one that began
    /// before us.
    fn daemon_died(&mut self) {
        self.clean_up();
        let stays = self.installed.as_ref().is_some_and(|installed| installed.on_failure == OnFailure::Block);
        if !stays && let Err(error) = self.notes.take_out_if_put() {
            log::error!("{error}");
        }
    }

    fn clean_up(&mut self) {
        let Some(Installed { installation, on_failure, text, .. }) = &self.installed else { return };
        match on_failure {
            OnFailure::Block => log::warn!("the daemon died: what it took is dropped until it is back"),
            OnFailure::Direct => {
                if installation.backend == Backend::Iptables {
                    iptables::unhook(text, installation.routes.families);
                }
                log::warn!("the daemon died: its rules are being removed, traffic flows without it");
                for error in installation.remove().into_iter().chain(self.spared.put_back().err()) {
                    log::error!("{error}; run `tproxyd clear`");
                }
            }
        }
    }

    /// The daemon may be in others' hands: it reads what the configuration names, and nothing else.
    fn must_be_named(&self, path: &Path) -> Result<(), Error> {
        let mut text = Vec::new();
        // A configuration of more than a megabyte is none.
        let read = open_regular(&self.config)?.take(1 << 20).read_to_end(&mut text);
        read.map_err(|error| Error::new(format!("read {}", self.config.display()), error))?;
        let text = String::from_utf8_lossy(&text);
        let wanted = path.to_string_lossy();
        let named = text.split(|c: char| c.is_whitespace() || matches!(c, '\'' | '"')).any(|word| word == wanted)
            || text
                .lines()
                .any(|line| line.contains(&format!("'{wanted}'")) || line.contains(&format!("\"{wanted}\"")));
        if named && path.is_absolute() {
            return Ok(());
        }
        Err(Error::new(format!("read {}", path.display()), "the configuration does not name it"))
    }
}

/// Opens without waiting for a writer of a pipe; refuses what is no plain file.
fn open_regular(path: &Path) -> Result<File, Error> {
    let what = || format!("read {}", path.display());
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(passing::NONBLOCKING).open(path);
    let file = opened.map_err(|error| Error::new(what(), error))?;
    let kind = file.metadata().map_err(|error| Error::new(what(), error))?;
    if kind.is_file() { Ok(file) } else { Err(Error::new(what(), "it is no regular file")) }
}

fn whole(mut file: File) -> std::io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

fn sent(rules: File) -> Result<String, Error> {
    whole(rules).map_err(|error| Error::new("take the rules from the daemon", error))
}

/// Checks that `rules` speak of our table only, and pull in no file: nft quotes what it can't read.
fn only_our_table(rules: File) -> Result<String, Error> {
    let failed = |why: String| Error::new("take the rules from the daemon", why);
    let text = sent(rules)?;
    let ours = |line: &str| {
        let rest = ["add ", "flush ", "delete "].iter().find_map(|verb| line.strip_prefix(verb));
        let words = rest.and_then(|rest| rest.split_once(' ')).map(|(_, words)| words);
        words
            .and_then(|words| words.strip_prefix("inet ")?.strip_prefix(TABLE))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    for line in text.lines() {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        if !ours(line) || !one_statement(line) || line.ends_with('\\') || words.any(|word| word == "include") {
            return Err(failed(format!("a line is not about our table: {line:.100}")));
        }
    }
    Ok(text)
}

/// False if `line` goes on with another statement behind the first: `;` stands between braces and in quotes only.
fn one_statement(line: &str) -> bool {
    let (mut quoted, mut depth) = (false, 0u32);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' => depth = depth.saturating_add(1),
            '}' if depth == 0 => return false,
            '}' => depth -= 1,
            ';' if depth == 0 => return false,
            _ => {}
        }
    }
    !quoted && depth == 0
}

/// The loop is another process's.
#[allow(clippy::disallowed_methods, reason = "the helper waits by a clock of its own")]
fn now() -> Instant {
    Instant::now()
}

/// What a script is told by. Anything else in its environment (`LD_PRELOAD`, `PATH`) could make it another program's.
const SCRIPT_VARIABLES: [&str; 5] = ["EVENT", "NAME", "DETAIL", "TIME", "MISSED"];
/// What a script of `on_event` finds its commands by.
const SCRIPT_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// How long it may run before it is killed, with all that it has started.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// Abstract socket name, which exists once in each network namespace, as our table does.
const LOCK: &str = "tproxyd-helper";

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<String, Error> {
        only_our_table(passing::text_file(text).unwrap())
    }

    #[test]
    fn rules_about_other_tables_or_other_files_are_refused() {
        assert!(checked("add table inet tproxyd\nadd rule inet tproxyd caught return\n").is_ok());
        assert!(checked("add set inet tproxyd x { type ipv4_addr; flags interval; }\n").is_ok());
        assert!(checked("add rule inet tproxyd x return comment \"a; b }\"\n").is_ok());
        for bad in [
            "include \"/etc/shadow\"",
            "add rule inet tproxyd caught return; include \"/etc/shadow\"",
            "delete table inet fw4",
            "flush ruleset",
            "add rule inet tproxyd2 x return",
            "add rule inet tproxyd x return \\",
            "add rule inet tproxyd x return; flush ruleset",
            "add chain inet tproxyd x { type nat hook input priority 0; }; delete table inet fw4",
            "add chain inet tproxyd x }; delete table inet fw4; add table inet y {",
            "add rule inet tproxyd x return comment \"a",
            "",
        ] {
            assert!(checked(&format!("add table inet tproxyd\n{bad}\n")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        assert!(open_regular(Path::new("/etc/passwd")).is_ok());
        assert!(open_regular(Path::new("/etc")).is_err());
        assert!(open_regular(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn a_script_is_told_of_the_event_and_of_nothing_else() {
        let (socket, _daemon) = passing::pair().unwrap();
        let config = std::env::temp_dir().join(format!("tproxyd-script-{}", std::process::id()));
        std::fs::write(&config, "config globals\n\toption on_event '/bin/true'\n").unwrap();
        let mut helper = Server::new(socket, config.clone(), Spared::new(Path::new("/nowhere")));
        let environment =
            |name: &str| vec![("EVENT".to_owned(), "reloaded".to_owned()), (name.to_owned(), "x".to_owned())];
        for name in ["LD_PRELOAD", "PATH", "", "event"] {
            let refused = helper.run_script(Path::new("/bin/true"), environment(name)).unwrap_err();
            assert!(refused.to_string().contains("nothing that a script is told"), "{refused}");
        }
        assert!(helper.run_script(Path::new("/bin/false"), environment("NAME")).is_err(), "it is not named");
        std::fs::remove_file(config).unwrap();
    }
}
