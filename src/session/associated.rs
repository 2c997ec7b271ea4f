//! The relays for datagrams that SOCKS5 clients have asked for: each stands as long as the connection over which it was asked
//! for (RFC 1928 section 7), and who has none is not served.

use std::net::IpAddr;

/// Clients that have a relay, and those that have none any more.
#[derive(Debug)]
pub struct Associated {
    standing: Vec<Standing>,
    /// Whose last connection has ended since [`Self::next_ended`] was asked.
    ended: Vec<Owner>,
}

/// A client, by its address alone: it need not say from which port it will send (section 4), and seldom does. With the place
/// of the listener that it asked.
type Owner = (IpAddr, u8);

#[derive(Debug)]
struct Standing {
    owner: Owner,
    /// Connections that keep it.
    connections: u16,
}

impl Associated {
    /// Room for as many clients as there can be connections, so that it is never full.
    pub fn new(connections: usize) -> Associated {
        Associated { standing: Vec::with_capacity(connections), ended: Vec::with_capacity(connections) }
    }

    /// Most memory that it takes, in bytes.
    pub const fn memory_max(connections: usize) -> usize {
        connections * (size_of::<Standing>() + size_of::<Owner>())
    }

    /// A connection keeps a relay for its client from now on.
    pub(super) fn begin(&mut self, client: IpAddr, listener: u8) {
        let owner = (client, listener);
        self.ended.retain(|ended| *ended != owner);
        match self.standing.iter_mut().find(|standing| standing.owner == owner) {
            Some(standing) => standing.connections += 1,
            None => self.standing.push(Standing { owner, connections: 1 }),
        }
    }

    /// A connection that kept one has ended.
    pub(super) fn end(&mut self, client: IpAddr, listener: u8) {
        let owner = (client, listener);
        let Some(place) = self.standing.iter().position(|standing| standing.owner == owner) else { return };
        let Some(standing) = self.standing.get_mut(place) else { return };
        standing.connections -= 1;
        if standing.connections == 0 {
            self.standing.swap_remove(place);
            self.ended.push(owner);
        }
    }

    /// Whether a client may send datagrams to that listener.
    pub(super) fn has(&self, client: IpAddr, listener: u8) -> bool {
        self.standing.iter().any(|standing| standing.owner == (client, listener))
    }

    /// A client without a relay any more, and the place of the listener: its flows are to end.
    pub fn next_ended(&mut self) -> Option<(IpAddr, u8)> {
        self.ended.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_stands_until_the_last_connection_for_it_has_ended() {
        let (one, other) = (IpAddr::from([192, 168, 1, 2]), IpAddr::from([192, 168, 1, 3]));
        let mut associated = Associated::new(4);
        associated.begin(one, 0);
        associated.begin(one, 0);
        associated.begin(other, 1);
        associated.end(one, 0);
        assert!(associated.has(one, 0) && !associated.has(one, 1) && associated.has(other, 1));
        assert_eq!(associated.next_ended(), None);
        associated.end(one, 0);
        assert!(!associated.has(one, 0));
        associated.end(one, 0);
        assert_eq!([associated.next_ended(), associated.next_ended()], [Some((one, 0)), None]);
    }

    #[test]
    fn a_client_that_asks_anew_at_once_keeps_its_flows() {
        let client = IpAddr::from([192, 168, 1, 2]);
        let mut associated = Associated::new(4);
        associated.begin(client, 0);
        associated.end(client, 0);
        associated.begin(client, 0);
        assert_eq!(associated.next_ended(), None);
    }
}
