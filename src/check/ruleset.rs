//! What `nft list ruleset` prints, as far as the doctor reads it: tables, chains, rules.

use std::process::Command;

use crate::netfilter::{TABLE, program};

/// A chain of somebody else's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// `inet fw4`.
    pub(super) table: String,
    pub(super) name: String,
    /// `prerouting`, `input` …; empty for one that is only jumped to.
    pub(super) hook: String,
    /// Its policy is to drop.
    pub(super) drops: bool,
    pub(super) rules: Vec<String>,
}

/// All chains but ours, and whether there is a flowtable. `None`: nft does not say.
pub(super) fn read() -> Option<(Vec<Chain>, bool)> {
    let mut command = Command::new("nft");
    command.args(["-s", "-t", "list", "ruleset"]);
    program::output(command, MOST).ok().map(|text| parse(&text))
}

pub(super) fn parse(text: &str) -> (Vec<Chain>, bool) {
    let mut chains: Vec<Chain> = Vec::new();
    let (mut table, mut flowtable) = (String::new(), false);
    let mut in_chain = false;
    // what is open: a table, and one object in it
    let mut depth = 0;
    for line in text.lines().map(str::trim) {
        let opens = line.strip_suffix('{').map(str::trim);
        match (depth, opens) {
            (0, Some(head)) => {
                table = head.strip_prefix("table ").unwrap_or(head).to_owned();
                depth = 1;
            }
            (1, Some(head)) => {
                depth = 2;
                flowtable |= head.starts_with("flowtable ");
                let name = head.strip_prefix("chain ").filter(|_| table != format!("inet {TABLE}"));
                in_chain = name.is_some();
                chains.extend(name.map(|name| Chain { table: table.clone(), name: name.into(), ..Chain::default() }));
            }
            (2, _) if line == "}" => {
                depth = 1;
                in_chain = false;
            }
            (1, _) if line == "}" => depth = 0,
            (2, _) if in_chain => {
                let Some(chain) = chains.last_mut() else { continue };
                match line.split_once(" hook ") {
                    Some((kind, rest)) if kind.starts_with("type ") => {
                        chain.hook = rest.split([' ', ';']).next().unwrap_or_default().to_owned();
                        chain.drops = rest.contains("policy drop");
                    }
                    _ => chain.rules.push(line.to_owned()),
                }
            }
            _ => {}
        }
    }
    (chains, flowtable)
}

/// Octets of a listing without the elements of its sets.
const MOST: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_read_with_their_hooks_and_rules_and_ours_is_passed_over() {
        let (chains, flowtable) = parse(
            "table inet fw4 {\n\tflowtable ft {\n\t\thook ingress priority filter\n\t\tdevices = { eth0, lan0 }\n\t}\n\n\
             \tset s {\n\t\ttype ipv4_addr\n\t}\n\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\
             \t\tiif \"lo\" accept comment \"!fw4: x\"\n\t}\n\n\tchain srcnat_wan {\n\t\tmasquerade\n\t}\n}\n\
             table inet tproxyd {\n\tchain caught {\n\t\treturn\n\t}\n}\n",
        );
        assert!(flowtable);
        assert_eq!(chains.len(), 2);
        let Chain { table, name, hook, drops, rules } = &chains[0];
        assert_eq!((table.as_str(), name.as_str(), hook.as_str(), *drops), ("inet fw4", "input", "input", true));
        assert_eq!(rules, &["iif \"lo\" accept comment \"!fw4: x\""]);
        assert_eq!((chains[1].hook.as_str(), chains[1].rules.len()), ("", 1));
    }
}
