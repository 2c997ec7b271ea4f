//! Answers on their way: documents that are written item by item as the socket takes them, never as a whole.

use super::clients;
use super::metrics::Metrics;
use super::request::{Selection, VERSION};
use super::sessions::Sessions;
use super::status::Status;
use super::subject::Subject;
use crate::proto::json::Writer;
use std::fmt;

/// Bytes of an answer that wait for the socket at most. Every item of every document fits.
pub(super) const OUTPUT: usize = 8192;

/// What one client has yet to be sent.
pub(super) type Output = heapless::String<OUTPUT>;

/// An answer, and how far it is.
pub(super) struct Answer {
    document: Document,
    comma: bool,
}

enum Document {
    /// Short, and written already.
    Ready {
        text: String,
        from: usize,
    },
    Status(Status),
    Sessions(Sessions),
    Metrics(Metrics),
    Clients(clients::Answer),
}

/// How a document goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// An item was written, or one was passed over.
    More,
    /// That was the last.
    Done,
}

/// How far [`Answer::fill`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// There is more than fits, or than may be done at one go.
    More,
    /// It is all written.
    Done,
}

/// Items written or passed over at one go. Passing over is a matter of nanoseconds each.
const ITEMS_PER_FILL: usize = 1024;

impl Answer {
    pub(super) fn status(subject: &dyn Subject) -> Answer {
        Answer::begin(Document::Status(Status::new(subject)))
    }

    pub(super) fn sessions(selection: Selection) -> Answer {
        Answer::begin(Document::Sessions(Sessions::new(selection)))
    }

    pub(super) fn metrics(subject: &dyn Subject) -> Answer {
        Answer::begin(Document::Metrics(Metrics::new(subject)))
    }

    pub(super) fn clients(subject: &dyn Subject) -> Answer {
        Answer::begin(Document::Clients(clients::Answer::new(subject.clients())))
    }

    /// An object whose members beside the version `members` writes.
    pub(super) fn object(members: impl Fn(&mut Writer<'_>) -> fmt::Result) -> Answer {
        let mut text = String::new();
        // text in memory takes everything
        let _ = write_object(&mut text, members);
        Answer::begin(Document::Ready { text, from: 0 })
    }

    /// What was asked can't be done.
    pub(super) fn error(why: &str) -> Answer {
        Answer::object(|json| json.text_member("error", why))
    }

    fn begin(document: Document) -> Answer {
        Answer { document, comma: false }
    }

    /// Writes as many items into `out` as fit behind what it holds.
    pub(super) fn fill(&mut self, subject: &dyn Subject, out: &mut Output) -> Fill {
        for _ in 0..ITEMS_PER_FILL {
            let written = out.len();
            let next = match &mut self.document {
                Document::Ready { text, from } => return copy(text, from, out),
                Document::Status(status) => write(out, &mut self.comma, |json| status.write(subject, json)),
                Document::Sessions(sessions) => write(out, &mut self.comma, |json| sessions.write(subject, json)),
                Document::Clients(clients) => write(out, &mut self.comma, |json| clients.write(json)),
                Document::Metrics(metrics) => write(out, &mut self.comma, |json| metrics.write(subject, json)),
            };
            match next {
                Ok(Next::More) => {}
                Ok(Next::Done) => return Fill::Done,
                Err(fmt::Error) => {
                    out.truncate(written);
                    debug_assert!(written > 0, "every item fits into an empty buffer");
                    return if written > 0 { Fill::More } else { Fill::Done };
                }
            }
        }
        Fill::More
    }
}

/// Writes one item; if it does not fit, nothing but `out` has changed.
fn write(
    out: &mut Output,
    comma: &mut bool,
    item: impl FnOnce(&mut Writer<'_>) -> Result<Next, fmt::Error>,
) -> Result<Next, fmt::Error> {
    let mut json = Writer::resume(out, *comma);
    let next = item(&mut json)?;
    *comma = json.needs_comma();
    if next == Next::Done {
        fmt::Write::write_char(out, '\n')?;
    }
    Ok(next)
}

fn copy(text: &str, from: &mut usize, out: &mut Output) -> Fill {
    let rest = text.get(*from..).unwrap_or_default();
    let room = out.capacity() - out.len();
    let part = start_of(rest, room);
    // it was measured
    let _ = out.push_str(part);
    *from += part.len();
    if part.len() == rest.len() { Fill::Done } else { Fill::More }
}

/// As many whole characters of `text` as fit into `room` bytes.
fn start_of(text: &str, room: usize) -> &str {
    (0..=room.min(text.len())).rev().find_map(|len| text.get(..len)).unwrap_or_default()
}

fn write_object(text: &mut String, members: impl Fn(&mut Writer<'_>) -> fmt::Result) -> fmt::Result {
    let mut json = Writer::new(text);
    json.begin_object()?;
    json.number_member("v", VERSION)?;
    members(&mut json)?;
    json.end_object()?;
    text.push('\n');
    Ok(())
}

/// A name out of the configuration, cut if somebody has made it longer than a screen.
pub(super) struct Short<'a>(pub(super) &'a str);

/// Bytes of a name that are shown at most. `option label` and a rule's `name` have 256 at most.
const NAME_MAX: usize = 300;

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= NAME_MAX {
            return f.write_str(self.0);
        }
        f.write_str(start_of(self.0, NAME_MAX))?;
        f.write_str("…")
    }
}
