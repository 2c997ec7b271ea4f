//! Listeners of mode redirect, a router on one arm, and what leaves in clients' names; see the files of those names for nft.

use super::{Active, For, MANGLE, NAT, PREFIX, RAW, Tables, device, matches, prefixes, sets};
use crate::config::{Mark, Mode};
use crate::netfilter::render::{Purpose, merged};

impl Tables<'_, '_> {
    pub(super) fn redirecting(&mut self) {
        let script = self.script;
        if script.purpose == Purpose::Block || script.by(Mode::Redirect).all(|active| active.devices.is_empty()) {
            return;
        }
        self.hook(NAT, "PREROUTING", "dnat");
        self.chain(NAT, "redirected");
        let (mut devices, mut untracked) = (Vec::new(), Vec::new());
        for active in script.by(Mode::Redirect) {
            for name in &active.devices {
                if !devices.contains(name) {
                    devices.push(*name);
                    self.of_each_proto(NAT, "dnat", format_args!("-i {} -g {PREFIX}redirected", device(name)));
                }
                if active.wants("udp") && !untracked.contains(name) {
                    untracked.push(*name);
                }
            }
        }
        // The chains of nat mark the first packet only, and a flow counts as new until it is answered.
        self.hook(MANGLE, "INPUT", "marked");
        let known = format!("-m conntrack --ctstate DNAT --ctdir ORIGINAL {}", matches("connmark", self.mark()));
        self.rule(MANGLE, "marked", For::Both, format_args!("{known} {}", sets("MARK", self.mark())));
        // A datagram in the name of somebody the client never spoke to: tracked, its answer would be a reply, which no nat
        // chain sees.
        if !untracked.is_empty() {
            self.hook(RAW, "OUTPUT", "raw");
        }
        for name in untracked {
            for v4 in [true, false] {
                let theirs = format!("-o {} -p udp {} -m addrtype ! --src-type LOCAL", device(name), self.own());
                self.rule(RAW, "raw", For::is(v4), format_args!("{theirs} -j CT --notrack"));
            }
        }
        self.rule(NAT, "redirected", For::Both, format_args!("{} -j RETURN", self.own()));
        self.rule(NAT, "redirected", For::Both, format_args!("{} -j RETURN", matches("mark", self.mark())));
        self.exclusions(NAT, "redirected");
        for (index, active) in script.active.iter().enumerate().filter(|(_, a)| a.listener.mode == Mode::Redirect) {
            for name in &active.devices {
                self.rule(NAT, "redirected", For::Both, format_args!("-i {} -j {PREFIX}l{index}", device(name)));
            }
        }
        for index in script.left_alone() {
            let chain = self.narrowing(MANGLE, &format!("x{index}"), &script.active[index], true);
            self.rule(MANGLE, &chain, For::Both, "-j ACCEPT");
        }
    }

    /// Marks the flow, so that its entry can be found when nobody serves it any more, and the packet for those who let what is
    /// ours through their `INPUT`.
    pub(super) fn redirect(&mut self, chain: &str, active: &Active<'_>) {
        for target in ["CONNMARK", "MARK"] {
            self.rule(NAT, chain, For::Both, sets(target, self.mark()));
        }
        let port = active.listener.port;
        let to = match active.listener.address.filter(|address| !address.is_unspecified()) {
            Some(address) => {
                format!("-j DNAT --to-destination {}", std::net::SocketAddr::new(address, port))
            }
            None => format!("-j REDIRECT --to-ports {port}"),
        };
        for v4 in [true, false].into_iter().filter(|v4| active.takes(*v4)) {
            for proto in ["tcp", "udp"].into_iter().filter(|proto| active.wants(proto)) {
                self.rule(NAT, chain, For::is(v4), format_args!("-p {proto} {to}"));
            }
        }
    }

    /// The way back of what we send in others' names.
    pub(super) fn kept_sources(&mut self) {
        let script = self.script;
        if script.purpose == Purpose::Block || script.active.is_empty() {
            return;
        }
        self.hook(MANGLE, "OUTPUT", "out");
        let foreign = "-m conntrack --ctstate NEW -m addrtype ! --src-type LOCAL";
        let own = self.own();
        let taken = sets("CONNMARK", self.mark());
        if !script.keeps_sources() {
            self.rule(MANGLE, "out", For::Both, format_args!("{own} -p udp {foreign} {taken}"));
            return;
        }
        let mut devices: Vec<&str> = script.active.iter().flat_map(|active| active.devices.iter().copied()).collect();
        devices.sort_unstable();
        devices.dedup();
        for name in devices {
            let theirs = format!("{own} -o {} -p udp {foreign}", device(name));
            self.rule(MANGLE, "out", For::Both, format_args!("{theirs} {taken}"));
            self.rule(MANGLE, "out", For::Both, format_args!("{theirs} -j RETURN"));
        }
        let kept = sets("CONNMARK", script.cfg.globals.self_mark);
        self.of_each_proto(MANGLE, "out", format_args!("{own} {foreign} {kept}"));
    }

    /// POSTROUTING does not know where a packet came in, so FORWARD tells it, by both marks at once.
    pub(super) fn one_arm(&mut self) {
        let script = self.script;
        let arms = script.arms();
        if arms.is_empty() {
            return;
        }
        let (mark, own) = (self.mark(), script.cfg.globals.self_mark);
        let both = Mark { value: mark.value | own.value, mask: mark.mask | own.mask };
        self.hook(MANGLE, "FORWARD", "fwd");
        self.hook(NAT, "POSTROUTING", "src");
        for name in arms {
            let there_and_back = format!("-i {name} -o {name}");
            for range in merged(&script.facts.on_link) {
                for prefix in prefixes(&range) {
                    let family = For::is(range.first.is_ipv4());
                    self.rule(MANGLE, "fwd", family, format_args!("{there_and_back} -d {prefix} -j RETURN"));
                }
            }
            self.rule(MANGLE, "fwd", For::Both, format_args!("{there_and_back} {}", sets("MARK", both)));
            for v4 in [true, false] {
                let rule = format!("-o {name} {} -j MASQUERADE", matches("mark", both));
                self.rule(NAT, "src", For::is(v4), rule);
                let redirect =
                    if v4 { "-p icmp -m icmp --icmp-type 5" } else { "-p ipv6-icmp -m icmp6 --icmpv6-type 137" };
                self.rule(MANGLE, "out", For::is(v4), format_args!("-o {name} {redirect} -j DROP"));
            }
        }
    }
}
