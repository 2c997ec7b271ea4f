//! `option on_event`: the helper runs a script for each event. One at a time, each once the one before has ended; events
//! that come meanwhile wait in the ring, and what a slow script makes it miss is counted to the next. The loop waits for
//! nothing of it.

use crate::error::Error;
use crate::helper::{Answer, Request};
use crate::reload::Rules;
use crate::stats::events::{Event, Events};
use crate::store::timers::Tick;
use std::path::Path;
use std::time::Duration;

/// How far the scripts are.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    /// The next event.
    next: u64,
    /// Number of the request to the helper.
    under_way: Option<u32>,
    /// The script before still ran: when to ask again.
    again: Option<Tick>,
    /// Events that nobody was told of.
    missed: u64,
    /// That it cannot work has been said.
    complained: bool,
}

/// How soon the helper is asked again whether a script has ended.
const AGAIN: Duration = Duration::from_millis(200);

impl Scripts {
    /// When [`Self::run`] has something to do.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.again
    }

    /// Has the script run for the next event, if there is one and its turn has come.
    pub(super) fn run(&mut self, script: Option<&Path>, events: &Events, rules: Option<&mut Rules>, now: Tick) {
        let Some(script) = script else {
            self.next = events.next();
            self.again = None;
            return;
        };
        let Some(rules) = rules else {
            if !std::mem::replace(&mut self.complained, true) {
                log::warn!("option on_event has no effect under --no-rules: there is no helper to run the script");
            }
            self.next = events.next();
            return;
        };
        if self.under_way.is_some() || self.again.is_some_and(|again| !now.reached(again)) {
            return;
        }
        self.again = None;
        self.missed += events.oldest().saturating_sub(self.next);
        self.next = self.next.max(events.oldest());
        let Some(event) = events.get(self.next) else { return };
        let request = Request::RunScript { path: script.to_owned(), environment: environment(event, self.missed) };
        match rules.submit(request) {
            Ok(number) => self.under_way = Some(number),
            // it is busy with other requests
            Err(_) => self.again = Some(now.after(AGAIN)),
        }
    }

    /// Takes the answer to request `number`; false if it is not one of these.
    pub(super) fn answered(&mut self, number: u32, answer: &Result<Answer, Error>, now: Tick) -> bool {
        if self.under_way != Some(number) {
            return false;
        }
        self.under_way = None;
        match answer {
            Ok(Answer::Busy) => {
                self.again = Some(now.after(AGAIN));
                return true;
            }
            Ok(_) => self.missed = 0,
            Err(e) => log::warn!("{e}"),
        }
        self.next += 1;
        true
    }

    /// The helper has ended, and with it whatever was asked of it.
    pub(super) fn give_up(&mut self) {
        self.under_way = None;
        self.again = None;
        self.complained = true;
    }
}

/// What the script is told.
fn environment(event: &Event, missed: u64) -> Vec<(String, String)> {
    let Event { at, kind, name, detail } = event;
    let pair = |key: &str, value: String| (key.to_owned(), value);
    vec![
        pair("EVENT", kind.name().to_owned()),
        pair("NAME", name.to_string()),
        pair("DETAIL", detail.to_string()),
        pair("TIME", at.to_string()),
        pair("MISSED", missed.to_string()),
    ]
}
