//! Policy routes: marked packets are delivered to this machine instead of being forwarded. One rule and one route for
//! each family, spoken to the kernel by rtnetlink(7); whatever else is there stays as it is.

use std::io;
use std::net::IpAddr;

use super::message::{AF_INET, AF_INET6, Message, attributes, u32_at};
use crate::config::{Families, Globals, Mark};
use crate::error::Error;
use crate::sys::netlink::{Family, Netlink};

/// `ip rule fwmark MARK lookup TABLE priority PRIORITY` and `ip route local default dev lo table TABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRoutes {
    /// Which packets.
    pub mark: Mark,
    /// Number of the routing table.
    pub table: u32,
    /// Preference of the rule.
    pub priority: u32,
    /// For which families.
    pub families: Families,
}

impl PolicyRoutes {
    /// What `globals` asks for, in the families that this kernel has.
    pub fn new(globals: &Globals, families: Families) -> PolicyRoutes {
        PolicyRoutes { mark: globals.mark, table: globals.table, priority: globals.rule_priority, families }
    }

    /// The commands that would do the same, as comments of the rule listing.
    pub fn comments(&self) -> String {
        let mut text = String::new();
        for family in self.each_family() {
            let dash = if family == AF_INET { "-4" } else { "-6" };
            let PolicyRoutes { mark, table, priority, .. } = self;
            text += &format!(
                "# ip {dash} rule add priority {priority} fwmark {:#010x}/{:#010x} lookup {table}\n\
                 # ip {dash} route add local default dev lo table {table}\n",
                mark.value, mark.mask
            );
        }
        text
    }

    /// Puts in place what is missing; leaves alone what is right already, so that no packet falls into a gap.
    ///
    /// # Errors
    /// A rule of someone else at this priority, a route of someone else in this table, or the kernel's refusal. What was
    /// added before the error is taken away again.
    pub fn install(&self) -> Result<(), Error> {
        let mut socket = open()?;
        let mut undo = Vec::new();
        let result = self.each_family().try_for_each(|family| self.install_family(&mut socket, family, &mut undo));
        if result.is_err() {
            for message in undo.into_iter().rev() {
                // The first error is the one to tell; what can't be undone is found by the next start or by `clear`.
                let _ = Message::ask(message, &mut socket);
            }
        }
        result
    }

    fn install_family(&self, socket: &mut Netlink, family: u8, undo: &mut Vec<Message>) -> Result<(), Error> {
        let found = self.inspect(socket, family)?;
        let ip = name(family);
        if let Some(foreign) = found.foreign_rule {
            return Err(Error::new(format!("add the {ip} rule {}", self.priority), foreign)
                .hint("set `option rule_priority` to a number that `ip rule` does not show"));
        }
        if found.foreign_route {
            let why = format!("table {} has routes of someone else", self.table);
            return Err(Error::new(format!("add the {ip} route of intercepted packets"), why)
                .hint("set `option table` to a number that nobody uses (ip route show table all)"));
        }
        if !found.our_route {
            self.route(RTM_NEWROUTE, NEW_ONLY, family).ask(socket).map_err(|error| {
                Error::new(format!("add the {ip} route to table {}", self.table), error)
                    .hint("the loopback device must be up (ip link set lo up), and CAP_NET_ADMIN is needed")
            })?;
            undo.push(self.route(RTM_DELROUTE, 0, family));
        }
        if found.our_rules == 0 {
            self.rule(RTM_NEWRULE, NEW_ONLY, family).ask(socket).map_err(|error| {
                Error::new(format!("add the {ip} rule {}", self.priority), error)
                    .hint("CAP_NET_ADMIN is needed, and a kernel with CONFIG_IP_MULTIPLE_TABLES")
            })?;
            undo.push(self.rule(RTM_DELRULE, 0, family));
        }
        Ok(())
    }

    /// Takes away the rules and routes that are exactly ours; that there are none is no error.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove(&self) -> Result<(), Error> {
        let mut socket = open()?;
        for family in self.each_family() {
            let ip = name(family);
            let found = self.inspect(&mut socket, family)?;
            for _ in 0..found.our_rules {
                gone_is_fine(self.rule(RTM_DELRULE, 0, family).ask(&mut socket))
                    .map_err(|error| Error::new(format!("delete the {ip} rule {}", self.priority), error))?;
            }
            if found.our_route {
                gone_is_fine(self.route(RTM_DELROUTE, 0, family).ask(&mut socket))
                    .map_err(|error| Error::new(format!("delete the {ip} route of table {}", self.table), error))?;
            }
        }
        Ok(())
    }

    /// What is missing of what [`PolicyRoutes::install`] has put in place, in words.
    ///
    /// # Errors
    /// The kernel's refusal to list rules or routes.
    pub fn missing(&self) -> Result<Option<String>, Error> {
        let mut socket = open()?;
        for family in self.each_family() {
            let found = self.inspect(&mut socket, family)?;
            if found.our_rules == 0 {
                return Ok(Some(format!("the {} policy rule {}", name(family), self.priority)));
            }
            if !found.our_route {
                return Ok(Some(format!("the {} route of table {}", name(family), self.table)));
            }
        }
        Ok(None)
    }

    /// What stands in the way of [`PolicyRoutes::install`], in words; nothing is changed.
    ///
    /// # Errors
    /// The kernel's refusal to list rules or routes.
    pub fn clashes(&self) -> Result<Vec<String>, Error> {
        let mut socket = open()?;
        let mut clashes = Vec::new();
        for family in self.each_family() {
            let found = self.inspect(&mut socket, family)?;
            if let Some(rule) = found.foreign_rule {
                clashes.push(format!("{} rule {}: {rule}", name(family), self.priority));
            }
            if found.foreign_route {
                clashes.push(format!("{} table {} has routes of someone else", name(family), self.table));
            }
        }
        Ok(clashes)
    }

    fn each_family(&self) -> impl Iterator<Item = u8> + use<> {
        [(self.families.v4, AF_INET), (self.families.v6, AF_INET6)].into_iter().filter(|f| f.0).map(|f| f.1)
    }

    fn inspect(&self, socket: &mut Netlink, family: u8) -> Result<Found, Error> {
        let mut found = Found::default();
        let list = |what: &str| {
            let what = format!("list the {} {what}", name(family));
            move |error: io::Error| Error::new(what, error)
        };
        Message::new(RTM_GETRULE, 0, &fixed(family, 0))
            .dump(socket, |_, body| {
                let rule = Rule::read(body);
                if rule.priority == self.priority {
                    if rule.is(self) {
                        found.our_rules += 1;
                    } else {
                        found.foreign_rule = Some(rule.describe());
                    }
                }
            })
            .map_err(list("rules"))?;
        Message::new(RTM_GETROUTE, 0, &fixed(family, 0))
            .dump(socket, |_, body| {
                let route = Route::read(body);
                // Cached and cloned entries (RTM_F_CLONED) are not configuration.
                if route.family == family && route.table == self.table && route.flags & RTM_F_CLONED == 0 {
                    if route.kind == RTN_LOCAL && route.prefix_len == 0 && route.device == Some(LOOPBACK) {
                        found.our_route = true;
                    } else {
                        found.foreign_route = true;
                    }
                }
            })
            .map_err(list("routes"))?;
        Ok(found)
    }

    fn rule(&self, kind: u16, flags: u16, family: u8) -> Message {
        Message::new(kind, flags, &fixed(family, FR_ACT_TO_TBL))
            .with_u32(FRA_PRIORITY, self.priority)
            .with_u32(FRA_FWMARK, self.mark.value)
            .with_u32(FRA_FWMASK, self.mark.mask)
            .with_u32(FRA_TABLE, self.table)
    }

    fn route(&self, kind: u16, flags: u16, family: u8) -> Message {
        let mut fixed = fixed(family, RTN_LOCAL);
        fixed[5] = RTPROT_BOOT;
        fixed[6] = if family == AF_INET { RT_SCOPE_HOST } else { 0 };
        Message::new(kind, flags, &fixed).with_u32(RTA_TABLE, self.table).with_u32(RTA_OIF, LOOPBACK)
    }
}

#[derive(Debug, Default)]
struct Found {
    our_rules: usize,
    foreign_rule: Option<String>,
    our_route: bool,
    foreign_route: bool,
}

/// A line of `ip rule`, as far as it matters here.
#[derive(Debug, Default)]
struct Rule {
    priority: u32,
    mark: u32,
    mask: u32,
    table: u32,
    action: u8,
    /// It has a selector or a flag that ours doesn't have.
    more: bool,
}

impl Rule {
    /// Reads a `struct fib_rule_hdr` and its attributes.
    fn read(body: &[u8]) -> Rule {
        let byte = |at: usize| body.get(at).copied().unwrap_or(0);
        let mut rule = Rule { table: byte(4).into(), action: byte(7), ..Rule::default() };
        rule.more = byte(1) != 0 || byte(2) != 0 || byte(3) != 0 || u32_at(body, 8) & FIB_RULE_INVERT != 0;
        for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
            match kind {
                FRA_PRIORITY => rule.priority = u32_at(value, 0),
                FRA_FWMARK => rule.mark = u32_at(value, 0),
                FRA_FWMASK => rule.mask = u32_at(value, 0),
                FRA_TABLE => rule.table = u32_at(value, 0),
                FRA_DST | FRA_SRC | FRA_IIFNAME | FRA_OIFNAME | FRA_UID_RANGE | FRA_IP_PROTO => rule.more = true,
                FRA_SPORT_RANGE | FRA_DPORT_RANGE => rule.more = true,
                FRA_L3MDEV => rule.more |= value != [0],
                _ => {}
            }
        }
        rule
    }

    fn is(&self, routes: &PolicyRoutes) -> bool {
        !self.more
            && self.action == FR_ACT_TO_TBL
            && (self.mark, self.mask) == (routes.mark.value, routes.mark.mask)
            && self.table == routes.table
    }

    fn describe(&self) -> String {
        format!("someone else's rule is there (fwmark {:#x}/{:#x}, table {})", self.mark, self.mask, self.table)
    }
}

/// A line of `ip rule` of anybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleLine {
    /// IPv4, else IPv6.
    pub v4: bool,
    /// Its preference.
    pub priority: u32,
    /// `fwmark`; 0 with a mask of 0: every packet.
    pub mark: u32,
    /// Bits of the mark that it looks at.
    pub mask: u32,
    /// Where it leads.
    pub table: u32,
    /// It asks for more than a mark.
    pub more: bool,
}

/// All rules of both families that lead to a table.
///
/// # Errors
/// The kernel's refusal to list them.
pub fn rules() -> Result<Vec<RuleLine>, Error> {
    let mut socket = open()?;
    let mut lines = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let listed = Message::new(RTM_GETRULE, 0, &fixed(family, 0)).dump(&mut socket, |_, body| {
            let Rule { priority, mark, mask, table, action, more } = Rule::read(body);
            if action == FR_ACT_TO_TBL {
                lines.push(RuleLine { v4: family == AF_INET, priority, mark, mask, table, more });
            }
        });
        // a kernel without IPv6 has none
        if family == AF_INET {
            listed.map_err(|error| Error::new("list the rules", error))?;
        }
    }
    Ok(lines)
}

/// Whether the main table of a family has a default route.
///
/// # Errors
/// The kernel's refusal to list routes.
pub fn has_default_route(v4: bool) -> Result<bool, Error> {
    Ok(!default_indices(if v4 { AF_INET } else { AF_INET6 })?.is_empty())
}

/// The devices by which default routes lead out, each once.
///
/// # Errors
/// The kernel's refusal to list routes.
pub fn default_devices() -> Result<Vec<String>, Error> {
    let mut indices = default_indices(AF_INET)?;
    indices.extend(default_indices(AF_INET6).unwrap_or_default());
    indices.sort_unstable();
    indices.dedup();
    Ok(indices.into_iter().filter_map(|index| crate::sys::interface::name(index).ok()).collect())
}

fn default_indices(family: u8) -> Result<Vec<u32>, Error> {
    let mut socket = open()?;
    let mut found = Vec::new();
    let listed = Message::new(RTM_GETROUTE, 0, &fixed(family, 0)).dump(&mut socket, |_, body| {
        let route = Route::read(body);
        let is_default = route.family == family && route.prefix_len == 0 && route.flags & RTM_F_CLONED == 0;
        // ours is a local one
        if is_default && route.kind == RTN_UNICAST && route.device != Some(LOOPBACK) {
            found.extend(route.device);
        }
    });
    listed.map_err(|error| Error::new("list the routes", error))?;
    Ok(found)
}

/// Where packets to an address go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WayTo {
    /// It is one of this machine's own.
    Here,
    /// Out by this device.
    Device(String),
    /// There is no route, or one that refuses.
    Nowhere,
}

/// Where the kernel would send a packet of this machine's to `to`: `ip route get`.
///
/// # Errors
/// The kernel's refusal to tell.
pub fn way_to(to: IpAddr) -> Result<WayTo, Error> {
    let mut socket = open()?;
    let mut way = WayTo::Nowhere;
    let (family, octets) = match to {
        IpAddr::V4(to) => (AF_INET, to.octets().to_vec()),
        IpAddr::V6(to) => (AF_INET6, to.octets().to_vec()),
    };
    let mut fixed = fixed(family, 0);
    fixed[1] = octets.len() as u8 * 8;
    let told = Message::new(RTM_GETROUTE, 0, &fixed).with(RTA_DST, &octets).inquire(&mut socket, |_, body| {
        let Route { kind, device, .. } = Route::read(body);
        way = match (kind, device.and_then(|index| crate::sys::interface::name(index).ok())) {
            (RTN_LOCAL, _) => WayTo::Here,
            (RTN_UNICAST, Some(device)) => WayTo::Device(device),
            _ => WayTo::Nowhere,
        };
    });
    match told {
        Ok(()) => Ok(way),
        Err(error) if REFUSALS.contains(&error.kind()) => Ok(WayTo::Nowhere),
        Err(error) => Err(Error::new(format!("ask for the way to {to}"), error)),
    }
}

/// A line of `ip route`, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) family: u8,
    pub(crate) prefix_len: u8,
    pub(crate) table: u32,
    /// `RTPROT_*`: who made it.
    pub(crate) origin: u8,
    /// `RTN_*`.
    pub(crate) kind: u8,
    pub(crate) flags: u32,
    pub(crate) destination: Option<&'a [u8]>,
    /// Index of the one device it leads to.
    pub(crate) device: Option<u32>,
    pub(crate) has_gateway: bool,
    /// `RTA_MULTIPATH`: several devices or gateways.
    pub(crate) hops: Option<&'a [u8]>,
}

impl<'a> Route<'a> {
    /// Reads a `struct rtmsg` and its attributes.
    pub(crate) fn read(body: &'a [u8]) -> Route<'a> {
        let byte = |at: usize| body.get(at).copied().unwrap_or(0);
        let mut route = Route {
            family: byte(0),
            prefix_len: byte(1),
            table: byte(4).into(),
            origin: byte(5),
            kind: byte(7),
            flags: u32_at(body, 8),
            destination: None,
            device: None,
            has_gateway: false,
            hops: None,
        };
        for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
            match kind {
                RTA_DST => route.destination = Some(value),
                RTA_OIF => route.device = Some(u32_at(value, 0)),
                RTA_GATEWAY | RTA_VIA | RTA_NH_ID => route.has_gateway = true,
                RTA_MULTIPATH => route.hops = Some(value),
                RTA_TABLE => route.table = u32_at(value, 0),
                _ => {}
            }
        }
        route
    }
}

fn open() -> Result<Netlink, Error> {
    Netlink::open(Family::Route).map_err(|error| Error::new("open an rtnetlink socket", error))
}

/// The first bytes of `struct fib_rule_hdr` and `struct rtmsg`, which have the same size and the family first; `action`
/// is the rule's action or the route's type.
fn fixed(family: u8, action: u8) -> [u8; 12] {
    let mut fixed = [0; 12];
    fixed[0] = family;
    fixed[7] = action;
    fixed
}

fn name(family: u8) -> &'static str {
    if family == AF_INET { "IPv4" } else { "IPv6" }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        // ENOENT for a rule; ESRCH, which std doesn't name, for a route.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => Ok(()),
        other => other,
    }
}

/// No route, or one of type unreachable, prohibit or blackhole.
const REFUSALS: [io::ErrorKind; 4] = [
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::PermissionDenied,
    io::ErrorKind::InvalidInput,
];
/// NLM_F_EXCL and NLM_F_CREATE.
const NEW_ONLY: u16 = 0x600;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_HOST: u8 = 254;
pub(crate) const RTM_F_CLONED: u32 = 0x200;
/// Index of `lo`, in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
