//! Rules that survive: what others take away is put back, and what depends on devices and addresses follows them.
//!
//! News is only a reason to look: events come in swarms (a firewall that reloads, a line that dials again), so they settle
//! first, and then the helper says how things are.

use super::{Installed, Reload, Rules, install_request, warn};
use crate::config::Backend;
use crate::error::Error;
use crate::event_loop::{Engine, number};
use crate::helper::{Answer, Request};
use crate::netfilter::{self, bridges::concerned, news::News};
use crate::session::outbound::{HeldBack, Limiter};
use crate::stats::events::Kind;
use crate::store::timers::Tick;
use std::time::Duration;

/// Watches over the rules that are in place.
pub struct Mending {
    /// `None`: nothing is heard, and only a reload mends.
    news: Option<News>,
    step: Step,
    /// When to look.
    due: Option<Tick>,
    limiter: Limiter,
}

enum Step {
    Idle,
    /// The helper looks at networks and links.
    Looking(u32),
    /// The helper looks whether all is in place; what would be put there.
    Inspecting(u32, Box<Installed>),
    /// The helper loads the rules; what had been taken away, if something had.
    Installing(u32, Box<Installed>, Option<String>),
}

/// How long events settle.
const SETTLE: Duration = Duration::from_millis(300);

/// How often it looks without being told.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How long it rests after it has put something back: whoever takes it away again and again is not fought at full speed.
const REST: Duration = Duration::from_secs(5);

impl Mending {
    /// Begins to listen, and looks for the first time soon.
    pub fn watch(engine: &Engine) -> Mending {
        let watched = News::watch().and_then(|news| {
            let [links, tables] = news.fds();
            engine.watch(links, number::NEWS)?;
            engine.watch(tables, number::NEWS_OF_TABLES)?;
            Ok(news)
        });
        if let Err(error) = &watched {
            log::warn!("{error}; rules follow the network at reloads only");
        }
        Mending {
            news: watched.ok(),
            step: Step::Idle,
            due: Some(engine.tick().after(SETTLE)),
            limiter: Limiter::default(),
        }
    }

    /// Something was told.
    pub fn note(&mut self, now: Tick) {
        let soon = now.after(SETTLE);
        if self.news.as_mut().is_some_and(News::take) && self.due.is_none_or(|due| due.reached(soon)) {
            self.due = Some(soon);
        }
    }

    /// When [`Self::run`] has something to do.
    pub fn deadline(&self) -> Option<Tick> {
        self.due.filter(|_| matches!(self.step, Step::Idle))
    }

    /// Looks, if it is time. A reload that is under way looks for itself.
    pub fn run(&mut self, engine: &Engine, rules: &mut Rules, reload: &Reload, now: Tick) {
        if !self.deadline().is_some_and(|due| now.reached(due)) {
            return;
        }
        if reload.is_busy() {
            self.due = Some(now.after(SETTLE));
            return;
        }
        // iptables-legacy tells nobody when its rules go, nor does who turns br_netfilter on
        let facts = &rules.installed.facts;
        let must_ask = facts.backend == Backend::Iptables || !concerned(&facts.by_tproxy(engine.config())).is_empty();
        self.due = must_ask.then(|| now.after(LOOK_AGAIN));
        let (networks, devices) = netfilter::questions(engine.config());
        match rules.helper.submit(Request::Look { networks, devices }) {
            Ok(number) => self.step = Step::Looking(number),
            Err(error) => self.try_later(&error, now),
        }
    }

    /// True if the answer to request `number` is for [`Self::go_on`].
    pub fn awaits(&self, number: u32) -> bool {
        match &self.step {
            Step::Idle => false,
            Step::Looking(own) | Step::Inspecting(own, _) | Step::Installing(own, ..) => *own == number,
        }
    }

    /// Takes the helper's answer.
    pub fn go_on(
        &mut self,
        answer: Result<Answer, Error>,
        engine: &mut Engine,
        rules: &mut Rules,
        reload: &Reload,
        now: Tick,
    ) {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        if reload.is_busy() && !matches!(step, Step::Installing(..)) {
            self.due = Some(now.after(SETTLE));
            return;
        }
        let next = answer.and_then(|answer| match (step, answer) {
            (Step::Looking(_), Answer::Surroundings(found)) => {
                let next = Box::new(rules.installed.next(engine.config(), &found));
                Ok(Step::Inspecting(rules.helper.submit(Request::Inspect)?, next))
            }
            (Step::Inspecting(_, next), Answer::Done) if !rules.installed.is_elsewhere_than(&next) => Ok(Step::Idle),
            (Step::Inspecting(_, next), Answer::Done) => {
                warn(&next.facts, engine.config());
                // it may be about a bridge
                rules.spare_bridges(engine.config(), &next.facts);
                self.install(next, None, engine, rules)
            }
            (Step::Inspecting(_, next), Answer::Damaged(what)) => self.install(next, Some(what), engine, rules),
            (Step::Installing(_, installed, why), Answer::Done) => {
                rules.installed = *installed;
                rules.tell_dnsmasq(engine.config());
                self.installed(why, engine, now);
                Ok(Step::Idle)
            }
            (_, other) => Err(super::unexpected(&other)),
        });
        match next {
            Ok(step) => self.step = step,
            Err(error) => self.try_later(&error, now),
        }
    }

    /// The helper has ended: nothing can be mended.
    pub fn give_up(&mut self) {
        (self.step, self.due, self.news) = (Step::Idle, None, None);
    }

    fn installed(&mut self, why: Option<String>, engine: &mut Engine, now: Tick) {
        let Some(why) = why else { return log::info!("devices or addresses have changed, and the rules with them") };
        self.due = self.due.map(|due| due.after(REST));
        if let Some(held_back) = self.limiter.admit(now) {
            log::warn!("{why}: everything is in place again{}", HeldBack(held_back));
        }
        engine.note_event(Kind::RulesRepaired, why);
    }

    fn install(
        &self,
        next: Box<Installed>,
        why: Option<String>,
        engine: &Engine,
        rules: &mut Rules,
    ) -> Result<Step, Error> {
        let mut next = next;
        next.hours = engine.config().hours();
        let request = install_request(engine.config(), &next.facts);
        Ok(Step::Installing(rules.helper.submit(request)?, next, why))
    }

    fn try_later(&mut self, error: &Error, now: Tick) {
        if let Some(held_back) = self.limiter.admit(now) {
            log::warn!("{error}; the rules may not fit the network, it is tried again{}", HeldBack(held_back));
        }
        self.due = Some(now.after(REST));
    }
}
