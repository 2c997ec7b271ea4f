//! What each client has moved, in a table of fixed size. A newcomer takes the place of the one that has done nothing for
//! longest, whose sums go to [`Clients::others`], so that nothing that was counted is lost.

use std::net::IpAddr;

/// Clients that are kept apart.
pub const CLIENTS_MAX: usize = 256;

/// Sums of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub ip: IpAddr,
    /// What it has moved in sessions that have ended.
    pub sums: Sums,
    /// When it last began or ended a session, in steps of the loop's clock.
    last: u32,
}

/// What was moved in sessions that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Sessions and mappings that were begun.
    pub total: u64,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    list: Vec<Client>,
    /// Of those that had to make room.
    others: Sums,
    /// How often one had to.
    evicted: u64,
    /// Where the last was found: sessions of one client come in a row.
    hint: usize,
}

impl Clients {
    /// Bytes that the table takes.
    pub const MEMORY_MAX: usize = CLIENTS_MAX * size_of::<Client>();

    /// None yet; room for all.
    pub fn new() -> Clients {
        Clients { list: Vec::with_capacity(CLIENTS_MAX), ..Clients::default() }
    }

    /// A session of `ip` begins at step `now` of the loop's clock.
    pub fn begin(&mut self, ip: IpAddr, now: u32) {
        let place = self.find(ip).unwrap_or_else(|| self.make_room(ip, now));
        if let Some(client) = self.list.get_mut(place) {
            client.sums.total += 1;
            client.last = now;
            self.hint = place;
        }
    }

    /// A session of `ip` has ended.
    pub fn end(&mut self, ip: IpAddr, bytes_up: u64, bytes_down: u64, now: u32) {
        let sums = match self.find(ip).and_then(|place| self.list.get_mut(place)) {
            Some(client) => {
                client.last = now;
                &mut client.sums
            }
            // it had to make room meanwhile
            None => &mut self.others,
        };
        sums.bytes_up += bytes_up;
        sums.bytes_down += bytes_down;
    }

    /// Those that are kept apart.
    pub fn list(&self) -> &[Client] {
        &self.list
    }

    /// Sums of all that are not, and how many times one had to make room.
    pub fn others(&self) -> (Sums, u64) {
        (self.others, self.evicted)
    }

    fn find(&self, ip: IpAddr) -> Option<usize> {
        if self.list.get(self.hint).is_some_and(|client| client.ip == ip) {
            return Some(self.hint);
        }
        self.list.iter().position(|client| client.ip == ip)
    }

    fn make_room(&mut self, ip: IpAddr, now: u32) -> usize {
        let new = Client { ip, sums: Sums::default(), last: now };
        if self.list.len() < CLIENTS_MAX {
            self.list.push(new);
            return self.list.len() - 1;
        }
        let longest = self.list.iter().enumerate().max_by_key(|(_, client)| now.wrapping_sub(client.last));
        let place = longest.map_or(0, |(place, _)| place);
        if let Some(client) = self.list.get_mut(place) {
            let Sums { total, bytes_up, bytes_down } = std::mem::replace(client, new).sums;
            self.others.total += total;
            self.others.bytes_up += bytes_up;
            self.others.bytes_down += bytes_down;
            self.evicted += 1;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: usize) -> IpAddr {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    }

    #[test]
    fn a_full_table_gives_the_place_of_the_longest_idle_and_loses_no_byte() {
        let mut clients = Clients::new();
        let start = u32::MAX - 10;
        for n in 0..CLIENTS_MAX {
            clients.begin(ip(n), start.wrapping_add(n as u32));
            clients.end(ip(n), 1, 2, start.wrapping_add(n as u32));
        }
        assert_eq!((clients.list().len(), clients.others().1), (CLIENTS_MAX, 0));
        // the first is busy again, so the second goes
        clients.begin(ip(0), start.wrapping_add(1000));
        clients.begin(ip(1000), start.wrapping_add(1001));
        assert!(clients.list().iter().any(|client| client.ip == ip(0)));
        assert!(!clients.list().iter().any(|client| client.ip == ip(1)));
        assert_eq!(clients.others(), (Sums { total: 1, bytes_up: 1, bytes_down: 2 }, 1));
        // a session of the one that has gone ends
        clients.end(ip(1), 10, 20, start.wrapping_add(1002));
        let all = clients.list().iter().map(|client| client.sums).chain([clients.others().0]);
        let (up, down) = all.fold((0, 0), |(up, down), sums| (up + sums.bytes_up, down + sums.bytes_down));
        assert_eq!((up, down), (CLIENTS_MAX as u64 + 10, 2 * CLIENTS_MAX as u64 + 20));
        assert_eq!(clients.list.capacity(), CLIENTS_MAX, "it never grows");
    }

    #[test]
    fn sessions_of_one_client_add_up() {
        let mut clients = Clients::new();
        for n in 0..5 {
            clients.begin(ip(7), n);
            clients.begin(ip(8), n);
            clients.end(ip(7), 3, 4, n);
        }
        let client = clients.list().iter().find(|client| client.ip == ip(7)).unwrap();
        assert_eq!(client.sums, Sums { total: 5, bytes_up: 15, bytes_down: 20 });
    }
}
