//! The answer to `clients`: `{"v":1,"clients":[…],"others":{…}}`, one client a line. README.md has the fields.

use super::answer::Next;
use super::request::VERSION;
use super::subject::{ClientRow, Clients};
use crate::proto::json::Writer;
use std::fmt;

/// How far the answer is.
pub(super) struct Answer {
    clients: Clients,
    begun: bool,
    index: usize,
}

impl Answer {
    pub(super) fn new(clients: Clients) -> Answer {
        Answer { clients, begun: false, index: 0 }
    }

    /// Writes the next item. What is changed here is changed behind the last write that can fail.
    pub(super) fn write(&mut self, json: &mut Writer<'_>) -> Result<Next, fmt::Error> {
        if !self.begun {
            json.begin_object()?;
            json.number_member("v", VERSION)?;
            json.key("clients")?;
            json.begin_array()?;
            self.begun = true;
            return Ok(Next::More);
        }
        match self.clients.list.get(self.index) {
            Some(client) => {
                json.new_line()?;
                row(client, json)?;
                self.index += 1;
                Ok(Next::More)
            }
            None => {
                json.end_array_on_new_line()?;
                json.key("others")?;
                let others = &self.clients.others;
                json.begin_object()?;
                json.number_member("evicted", self.clients.evicted)?;
                amounts(others, json)?;
                json.end_object()?;
                json.end_object()?;
                Ok(Next::Done)
            }
        }
    }
}

fn row(client: &ClientRow, json: &mut Writer<'_>) -> fmt::Result {
    json.begin_object()?;
    json.text_member("client", client.ip)?;
    json.optional_text_member("mac", client.mac.map(Mac))?;
    amounts(client, json)?;
    json.end_object()
}

fn amounts(client: &ClientRow, json: &mut Writer<'_>) -> fmt::Result {
    json.number_member("sessions", client.sessions.into())?;
    json.number_member("total", client.total)?;
    json.number_member("bytes_up", client.bytes_up)?;
    json.number_member("bytes_down", client.bytes_down)
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
