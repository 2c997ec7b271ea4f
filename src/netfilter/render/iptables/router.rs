//! What this machine itself sends, where a listener says `router '1'`; see `render/router.rs`.

use super::{For, MANGLE, NAT, PREFIX, Tables, matches, sets};
use crate::config::Mode;
use crate::netfilter::render::Purpose;

impl Tables<'_, '_> {
    pub(super) fn router(&mut self) {
        let script = self.script;
        let run = script.purpose == Purpose::Run;
        let (mut marked, mut redirected) = (script.of_router(Mode::Tproxy), script.of_router(Mode::Redirect));
        if !run {
            // nat tables can't drop
            marked.append(&mut redirected);
            marked.sort_unstable();
        }
        let own = self.own();
        if !marked.is_empty() {
            if !run {
                self.hook(MANGLE, "OUTPUT", "out");
            }
            self.chain(MANGLE, "routed");
            self.of_each_proto(MANGLE, "out", format_args!("-g {PREFIX}routed"));
            self.rule(MANGLE, "routed", For::Both, format_args!("{own} -j RETURN"));
            self.rule(MANGLE, "routed", For::Both, "-m conntrack --ctdir REPLY -j RETURN");
            if script.by(Mode::Redirect).next().is_some() {
                self.rule(MANGLE, "routed", For::Both, "-m conntrack --ctstate DNAT -j RETURN");
            }
            if run {
                let taken = matches("connmark", self.mark());
                self.rule(MANGLE, "routed", For::Both, format_args!("{taken} {}", sets("MARK", self.mark())));
                self.rule(MANGLE, "routed", For::Both, format_args!("{taken} -j RETURN"));
            }
            self.rule(MANGLE, "routed", For::Both, "-m conntrack ! --ctstate NEW -j RETURN");
            self.ask_for_router(MANGLE, "routed", &marked);
        }
        if !redirected.is_empty() {
            self.hook(NAT, "OUTPUT", "nout");
            self.chain(NAT, "rerouted");
            self.of_each_proto(NAT, "nout", format_args!("-g {PREFIX}rerouted"));
            self.rule(NAT, "rerouted", For::Both, format_args!("{own} -j RETURN"));
            self.rule(NAT, "rerouted", For::Both, format_args!("{} -j RETURN", matches("mark", self.mark())));
            self.ask_for_router(NAT, "rerouted", &redirected);
        }
    }

    fn ask_for_router(&mut self, table: usize, chain: &str, listeners: &[usize]) {
        let script = self.script;
        self.exclusions(table, chain);
        if script.drops() {
            // Once nobody takes them they are dropped, and the router must be able to mend itself.
            for port in [53, 123] {
                for proto in ["tcp", "udp"] {
                    let rule = format!("-p {proto} -m {proto} --dport {port} -j RETURN");
                    self.rule(table, chain, For::Both, rule);
                }
            }
        }
        for index in listeners {
            let active = &script.active[*index];
            self.rule(table, chain, For::Both, format_args!("-j {PREFIX}r{index}"));
            let last = self.narrowing(table, &format!("r{index}"), active, false);
            if script.purpose == Purpose::Block {
                self.rule(table, &last, For::Both, "-j DROP");
            } else if table == MANGLE {
                for target in ["CONNMARK", "MARK"] {
                    self.rule(table, &last, For::Both, sets(target, self.mark()));
                }
                self.rule(table, &last, For::Both, "-j ACCEPT");
            } else {
                self.redirect(&last, active);
            }
        }
    }
}
