//! `option reclassify`: live flows that the kernel decided get new rules, too.
//!
//! Such a flow carries both bits of our marks in its connection tracking entry, so that its later packets can be told from
//! those of flows that began without us. They go through the list again: a TCP connection that is not direct any more is
//! reset; of UDP the helper deletes the entries after a reload, and the next datagram begins a new flow. A flow that is
//! offloaded to a flow table does not come by here.

use super::{Purpose, Script, TABLE, matches_mark, sets_mark};
use crate::config::{Globals, Mark, Mode};

/// What such an entry carries; `None` if the marks of the configuration leave no value for it.
pub fn decided_mark(globals: &Globals) -> Option<Mark> {
    let (mark, own) = (globals.mark, globals.self_mark);
    let value = mark.value | own.value;
    let apart = mark.mask == own.mask && value != mark.value && value != own.value;
    (globals.reclassify && globals.kernel_verdicts && apart).then_some(Mark { value, mask: mark.mask })
}

impl Script<'_> {
    /// The mark of decided flows, if they are asked again. A redirected flow has its address translated for good.
    pub(super) fn revises(&self) -> Option<Mark> {
        let redirects = self.by(Mode::Redirect).next().is_some();
        decided_mark(&self.cfg.globals).filter(|_| self.purpose == Purpose::Run && !redirects && self.decides())
    }

    pub(super) fn declare_revising(&mut self) {
        if self.revises().is_some() {
            self.line(format_args!("add chain inet {TABLE} revised"));
        }
    }

    /// Behind what passes the flows by that we took, before what passes all by that are not new.
    pub(super) fn revise(&mut self) {
        let Some(mark) = self.revises() else { return };
        let decided = matches_mark("ct mark", mark);
        self.rule(
            "caught",
            format_args!(r#"{decided} ct direction original ct state != new goto revised comment "reclassify""#),
        );
        self.places_passed_by("revised");
        self.ask_listeners("revised");
    }

    /// What follows an accepting verdict's match.
    pub(super) fn accept(&self) -> String {
        self.revises().map_or_else(|| "accept".to_owned(), |mark| format!("{} accept", sets_mark("ct mark", mark)))
    }

    /// In a listener's chain, behind the verdicts: what was direct, and is now for the process or a closed way.
    pub(super) fn end_revised(&self) -> Vec<String> {
        let Some(mark) = self.revises() else { return Vec::new() };
        let decided = matches_mark("ct mark", mark);
        let end = if self.facts.early_reject { "reject with tcp reset" } else { "drop" };
        vec![
            // the client's own reset goes on to the server
            format!(r#"{decided} tcp flags & rst == rst return"#),
            format!(r#"{decided} meta l4proto tcp {end} comment "reclassify""#),
            format!(r#"{decided} meta l4proto udp return"#),
        ]
    }
}
