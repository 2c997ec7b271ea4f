//! Rules with hours: at each boundary, and when the clock is set, they are switched, in the process and in the kernel.

use crate::config::{Config, Moment, load};
use crate::error::Error;
use crate::event_loop::{Engine, number};
use crate::reload::{Reload, Rules};
use crate::sys::clock::Alarm;
use std::os::fd::AsRawFd;

/// Keeps the rules to their hours. Without such rules there is no descriptor, and nobody is woken.
#[derive(Default)]
pub(super) struct Hours {
    alarm: Option<Alarm>,
    /// It rang, or the rules are others now.
    due: bool,
    /// The helper loads the rules.
    awaited: Option<u32>,
    /// They were not taken: not at once again.
    failed: bool,
}

/// When it is tried again, if the kernel did not take the rules.
const AGAIN: i64 = 5;

impl Hours {
    /// To be looked at in this turn.
    pub(super) fn note(&mut self) {
        self.due = true;
    }

    /// The descriptor is readable.
    pub(super) fn ring(&mut self) {
        self.due |= self.alarm.as_ref().is_some_and(Alarm::take);
    }

    /// True if the answer to that request was for this.
    pub(super) fn answered<T>(
        &mut self,
        number: u32,
        answer: &Result<T, Error>,
        rules: &mut Rules,
        config: &Config,
    ) -> bool {
        if self.awaited != Some(number) {
            return false;
        }
        self.awaited = None;
        // a reload may have come between
        self.due = true;
        match answer {
            Ok(_) => {
                log::info!("the rules in the kernel are those of this hour");
                rules.hours_followed(config);
            }
            Err(error) => {
                rules.forget_hours();
                self.late(error);
            }
        }
        true
    }

    /// Does what is due.
    pub(super) fn run(&mut self, engine: &mut Engine, rules: Option<&mut Rules>, reload: &Reload) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        let now = load::moment();
        engine.keep_hours(&now);
        engine.keep_periods(&now);
        let mut next = engine.config().next_hour(&now);
        if let Some(rules) = rules
            && self.awaited.is_none()
            && !self.failed
            && !reload.is_busy()
        {
            match rules.follow_hours(engine.config()) {
                Ok(number) => self.awaited = number,
                Err(error) => self.late(&error),
            }
        }
        if std::mem::take(&mut self.failed) {
            next = Some(now.utc + AGAIN);
        }
        if let Err(error) = self.set(engine, &now, next) {
            log::warn!("{error}; rules with hours are switched by a reload only");
        }
    }

    fn late(&mut self, error: &Error) {
        self.failed = true;
        log::warn!("{error}; the rules in the kernel are those of the hour before, it is tried again");
    }

    fn set(&mut self, engine: &Engine, now: &Moment, next: Option<i64>) -> Result<(), Error> {
        let Some(next) = next else {
            self.alarm = None;
            return Ok(());
        };
        let failed = |error| Error::new("watch the clock", &error);
        if self.alarm.is_none() {
            let alarm = Alarm::new().map_err(failed)?;
            engine.watch(alarm.as_raw_fd(), number::HOURS)?;
            self.alarm = Some(alarm);
        }
        let next = next.max(now.utc + 1);
        self.alarm.as_ref().map_or(Ok(()), |alarm| alarm.set(Some(next))).map_err(failed)
    }
}
