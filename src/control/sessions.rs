//! The answer to `sessions`: `{"v":1,"sessions":[…],"next":N}`, one session a line, so that a reader need not hold it all.
//!
//! Of each: `id` (for `kick`); `proto`; `client`; `orig_dst` (of a mapping its first destination); `domain`: the
//! name that the client asked for, null where no rule needed it or none was told; `rule`: N of `@rule[N]`, null if `option default` decided; `outbound`; `age_s`; `bytes_up` from the
//! client, `bytes_down` to it; `state`. `next`: the `offset` at which the list goes on behind its `limit`, else null.
//!
//! Sessions come and go while a long list is sent: one that lives all the while is in it once, others may be.

use super::answer::{Next, Short};
use super::request::{Selection, VERSION};
use super::subject::{Place, Session, Subject};
use crate::proto::json::Writer;
use std::fmt;

/// How far the answer is.
pub(super) struct Sessions {
    selection: Selection,
    begun: bool,
    /// The next place to look at.
    place: u32,
    /// Sessions that were selected so far, those before the offset included.
    selected: u32,
}

impl Sessions {
    pub(super) fn new(selection: Selection) -> Sessions {
        Sessions { selection, begun: false, place: 0, selected: 0 }
    }

    /// Writes the next item. What is changed here is changed behind the last write that can fail.
    pub(super) fn write(&mut self, subject: &dyn Subject, json: &mut Writer<'_>) -> Result<Next, fmt::Error> {
        if !self.begun {
            json.begin_object()?;
            json.number_member("v", VERSION)?;
            json.key("sessions")?;
            json.begin_array()?;
            self.begun = true;
            return Ok(Next::More);
        }
        let session = match subject.session(self.place) {
            Place::Session(session) => session,
            Place::Vacant => {
                self.place += 1;
                return Ok(Next::More);
            }
            Place::End => return end(json, None),
        };
        if self.selects(&session) {
            let Selection { offset, limit, .. } = self.selection;
            if self.selected >= offset {
                if limit.is_some_and(|limit| self.selected - offset >= limit) {
                    return end(json, Some(self.selected.into()));
                }
                write(&session, json)?;
            }
            self.selected += 1;
        }
        self.place += 1;
        Ok(Next::More)
    }

    fn selects(&self, session: &Session<'_>) -> bool {
        let Selection { client, outbound, dst, .. } = &self.selection;
        client.is_none_or(|client| client.is(session.client))
            && dst.is_none_or(|dst| dst.is(session.orig_dst))
            && outbound.as_ref().is_none_or(|outbound| outbound == session.outbound)
    }
}

fn write(session: &Session<'_>, json: &mut Writer<'_>) -> fmt::Result {
    json.new_line()?;
    json.begin_object()?;
    json.number_member("id", session.id.into())?;
    json.text_member("proto", session.proto.name())?;
    json.text_member("client", session.client)?;
    json.text_member("orig_dst", session.orig_dst)?;
    json.optional_text_member("domain", session.domain.as_ref())?;
    json.optional_number_member("rule", session.rule.map(u64::from))?;
    json.text_member("outbound", Short(session.outbound))?;
    json.number_member("age_s", session.age.as_secs())?;
    json.number_member("bytes_up", session.bytes_up)?;
    json.number_member("bytes_down", session.bytes_down)?;
    json.text_member("state", session.state)?;
    json.end_object()
}

fn end(json: &mut Writer<'_>, next: Option<u64>) -> Result<Next, fmt::Error> {
    // the bracket stands alone on its line, behind a list that may be empty
    json.end_array_on_new_line()?;
    json.optional_number_member("next", next)?;
    json.end_object()?;
    Ok(Next::Done)
}
