//! Listeners of mode redirect: chains of type nat, which see the first packet of each flow only.
//!
//! `dstnat` comes just before the firewall's own (which decides on port forwards, and those lead to addresses of this router,
//! which are passed by). `live` is not for these flows: connection tracking leads the rest of their packets.

use super::{Active, Purpose, Script, TABLE, host, matches_mark, narrowing, sets_mark};
use crate::config::{Listener, Mode};

impl<'a> Script<'a> {
    /// The listeners of `mode`, in file order.
    pub(super) fn by(&self, mode: Mode) -> impl Iterator<Item = &Active<'a>> {
        self.active.iter().filter(move |active| active.listener.mode == mode)
    }

    fn redirects(&self) -> bool {
        self.by(Mode::Redirect).next().is_some()
    }

    pub(super) fn declare_redirecting(&mut self) {
        if !self.redirects() {
            return;
        }
        self.line(format_args!("add chain inet {TABLE} redirected"));
        let base = format!("{{ type nat hook prerouting priority {PRIORITY}; policy accept; }}");
        self.line(format_args!("add chain inet {TABLE} dstnat {base}"));
        let base = "{ type filter hook output priority raw; policy accept; }";
        self.line(format_args!("add chain inet {TABLE} untracked {base}"));
        let base = "{ type filter hook input priority mangle; policy accept; }";
        self.line(format_args!("add chain inet {TABLE} input {base}"));
        for index in self.left_alone() {
            let Some(name) = self.active.get(index).map(|active| active.listener.name.clone()) else { continue };
            self.line(format_args!("add chain inet {TABLE} left_{name}"));
        }
    }

    /// What `redirect` takes must not be taken for a flow by TPROXY that lives on.
    pub(super) fn pass_redirected_by(&mut self) {
        if self.redirects() {
            self.rule("caught", r#"ct status dnat return comment "redirected, here or by the firewall""#);
        }
    }

    pub(super) fn redirecting(&mut self) {
        if !self.redirects() {
            return;
        }
        let jumps = self.by(Mode::Redirect).flat_map(|active| {
            let name = &active.listener.name;
            active
                .devices
                .iter()
                .map(move |device| (device.to_string(), format!(r#"iifname "{device}" jump listener_{name}"#)))
        });
        let (mut devices, mut asked) = (Vec::new(), Vec::new());
        for (device, jump) in jumps {
            if !devices.contains(&device) {
                devices.push(device);
            }
            asked.push(jump);
        }
        let own = matches_mark("meta mark", self.cfg.globals.self_mark);
        if self.purpose == Purpose::Run {
            // For those who let what is ours through their `input`: the chains of type nat mark the first packet only, and a
            // flow counts as new until it is answered.
            let mark = self.cfg.globals.mark;
            let (ours, marked) = (matches_mark("ct mark", mark), sets_mark("meta mark", mark));
            self.rule("input", format_args!("ct status dnat ct direction original {ours} {marked}"));
            // A datagram in the name of somebody the client never spoke to: tracked, the client's answer would be a reply, which
            // no nat chain sees. Those in the names of others are sent by the listener itself.
            let of_datagrams = self.by(Mode::Redirect).filter(|active| active.wants("udp"));
            let answered: Vec<String> =
                of_datagrams.flat_map(|active| &active.devices).map(|d| d.to_string()).collect();
            for device in devices.iter().filter(|device| answered.contains(device)) {
                self.rule(
                    "untracked",
                    format_args!(r#"{own} oifname "{device}" meta l4proto udp fib saddr type != local notrack"#),
                );
            }
        }
        for device in devices {
            self.rule("dstnat", format_args!(r#"meta l4proto {{ tcp, udp }} iifname "{device}" goto redirected"#));
        }
        self.rule("redirected", format_args!(r#"{own} return comment "self_mark""#));
        let taken = matches_mark("meta mark", self.cfg.globals.mark);
        self.rule("redirected", format_args!(r#"{taken} return comment "taken by tproxy""#));
        self.exclusions("redirected");
        for jump in asked {
            self.rule("redirected", jump);
        }
        for index in self.left_alone() {
            let Some(active) = self.active.get(index) else { continue };
            let chain = format!("left_{}", active.listener.name);
            let mut rules = narrowing(self.cfg, active.listener, active.families);
            rules.push(r#"accept comment "it comes before those by tproxy""#.into());
            for rule in rules {
                self.rule(&chain, rule);
            }
        }
    }

    /// Marks the flow, so that its entry can be found when nobody serves it any more, and sends it to the listener.
    pub(super) fn redirect(&self, active: &Active<'_>, v4: bool) -> String {
        let Listener { name, port, address, .. } = active.listener;
        let ct_mark = sets_mark("ct mark", self.cfg.globals.mark);
        let to = match address.filter(|address| !address.is_unspecified()) {
            Some(address) => format!("dnat {} to {}:{port}", if v4 { "ip" } else { "ip6" }, host(address)),
            None => format!("redirect to :{port}"),
        };
        format!("{ct_mark} counter name listener_{name} {to}")
    }

    /// True if what this listener by redirect wants must be kept from listeners by tproxy, which stand after it in the file
    /// and come before it in the kernel.
    fn is_asked_before_tproxy(&self, index: usize) -> bool {
        let Some((active, later)) = self.active.get(index..).and_then(|rest| rest.split_first()) else { return false };
        let shares = |other: &&Active<'_>| {
            let wildcard = |name: &str| name.ends_with('*');
            other.devices.iter().any(|name| wildcard(name) || active.devices.contains(name))
                || active.devices.iter().any(|name| wildcard(name))
        };
        active.listener.mode == Mode::Redirect
            && later.iter().filter(|a| a.listener.mode == Mode::Tproxy).any(|a| shares(&a))
    }

    pub(super) fn left_alone(&self) -> Vec<usize> {
        let run = self.purpose == Purpose::Run;
        (0..self.active.len()).filter(|index| run && self.is_asked_before_tproxy(*index)).collect()
    }
}

/// `dstnat - 5`, as a number: nft before 1.0 knows that name at prerouting only.
pub(super) const PRIORITY: i32 = -105;
