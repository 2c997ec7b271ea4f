//! The filter of system calls, and what it has refused.

use crate::sys::sandbox;

/// Puts the filter on, if it is `wanted` and this build has it. (Where there is none, `check` says so.)
pub(super) fn enter(wanted: bool) {
    if !wanted || !sandbox::BUILT {
        return;
    }
    match sandbox::enter() {
        Ok(()) => log::debug!("no more system calls than needed from here on"),
        Err(e) => log::info!("this kernel filters no system calls: {e}"),
    }
}

/// Calls that were refused, each of which is told of once.
#[derive(Default)]
pub(super) struct Refusals {
    told: Vec<i32>,
}

/// How many different calls are told of: whoever has taken the process over does not fill the log with them.
const MOST_TOLD: usize = 32;

impl Refusals {
    /// Tells of what was refused since the last time.
    pub(super) fn tell(&mut self) {
        let Some(call) = sandbox::take_refused() else { return };
        if self.told.len() < MOST_TOLD && !self.told.contains(&call) {
            self.told.push(call);
            let processor = std::env::consts::ARCH;
            log::warn!(
                "the sandbox has refused system call {call} ({processor}); report it, `option sandbox '0'` does without"
            );
        }
    }
}
