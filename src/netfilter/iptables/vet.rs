//! Checks that what the daemon sends is about our chains and sets only: it may be in others' hands, and the tools have options
//! that run programs.

use crate::error::Error;
use crate::netfilter::render::iptables::{IPSET, PREFIX, TABLES};

/// `text`, if every line of it is about our chains and sets.
///
/// # Errors
/// The first line that is not.
pub fn only_ours(text: String) -> Result<String, Error> {
    match text.lines().find(|line| !is_ours(line)) {
        None => Ok(text),
        Some(line) => {
            let why = format!("a line is not about our chains: {line:.100}");
            Err(Error::new("take the rules from the daemon", why))
        }
    }
}

fn is_ours(line: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_.:,/+#*![]@".contains(c);
    if !line.chars().all(plain) {
        return false;
    }
    let words: Vec<&str> = line.split(' ').collect();
    let ours = |word: &&str| word.starts_with(PREFIX);
    if let Some(set) = line.strip_prefix(IPSET) {
        let mut words = set.split(' ');
        return matches!(words.next(), Some("create" | "add")) && words.next().as_ref().is_some_and(ours);
    }
    let words = match words.as_slice() {
        ["-4" | "-6", rest @ ..] | rest => rest,
    };
    match words {
        ["COMMIT"] => true,
        [table] => table.strip_prefix('*').is_some_and(|name| TABLES.contains(&name)),
        [chain, "-", "[0:0]"] => chain.strip_prefix(':').as_ref().is_some_and(ours),
        ["-I", hook, "-j", chain] => hook.bytes().all(|byte| byte.is_ascii_uppercase()) && ours(chain),
        ["-A", chain, rest @ ..] => {
            ours(chain) && rest.iter().all(|word| !word.starts_with('-') || OPTIONS.contains(word))
        }
        _ => false,
    }
}

/// All that our rules use. Abbreviations are not among them.
const OPTIONS: [&str; 27] = [
    "-p",
    "-m",
    "-i",
    "-o",
    "-s",
    "-d",
    "-j",
    "-g",
    "--dport",
    "--sport",
    "--ctstate",
    "--ctdir",
    "--dst-type",
    "--src-type",
    "--mark",
    "--set-xmark",
    "--tcp-flags",
    "--match-set",
    "--mac-source",
    "--on-port",
    "--on-ip",
    "--tproxy-mark",
    "--to-ports",
    "--to-destination",
    "--notrack",
    "--icmp-type",
    "--icmpv6-type",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_other_chains_or_with_options_that_run_programs_are_refused() {
        for good in [
            "*mangle",
            ":tproxyd_pre - [0:0]",
            "-I PREROUTING -j tproxyd_pre",
            "-4 -A tproxyd_pre -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN",
            "-A tproxyd_l0 -m mac --mac-source 02:00:00:00:00:01 -g tproxyd_l0_1",
            "#ipset create tproxyd_4_0a hash:net family inet maxelem 3",
            "#ipset add tproxyd_6_0a fd00::/8",
        ] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "*security",
            ":INPUT DROP [0:0]",
            ":tproxyd_pre ACCEPT [0:0]",
            "-A INPUT -j ACCEPT",
            "-I PREROUTING -j ACCEPT",
            "-I tproxyd_pre -j tproxyd_pre -M x",
            "-A tproxyd_pre -M /tmp/evil -j RETURN",
            "-A tproxyd_pre --modprobe=/tmp/evil -j RETURN",
            "-A tproxyd_pre -j RETURN -t nat",
            "-A tproxyd_pre -m comment --comment \"x",
            "-A tproxyd_pre -j LOG --log-prefix x",
            "-X",
            "-F INPUT",
            "#ipset destroy other",
            "#ipset add other 10.0.0.0/8",
            "",
        ] {
            assert!(!is_ours(bad), "{bad}");
        }
    }
}
