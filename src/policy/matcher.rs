//! What a rule asks of each kind of value, ready to be looked up in: the cost does not grow with the number of values.

use crate::config::{AddressMatch, DomainMatch, DomainSet, Entries, Mac, NetSet, PortRange, Set, Values};
use std::net::IpAddr;
use std::sync::Arc;

/// One kind: it matches if it has no plain value or one matches, and no `!` value matches.
#[derive(Debug, Default)]
pub(super) struct Kind<M> {
    plain: Option<M>,
    not: Option<M>,
}

impl<M> Kind<M> {
    fn new<T>(values: &Values<T>, make: impl Fn(&[T]) -> M) -> Kind<M> {
        let some = |values: &[T]| (!values.is_empty()).then(|| make(values));
        Kind { plain: some(&values.plain), not: some(&values.not) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_none() && self.not.is_none()
    }

    pub(super) fn matches(&self, one: impl Fn(&M) -> bool) -> bool {
        self.plain.as_ref().is_none_or(&one) && !self.not.as_ref().is_some_and(one)
    }
}

/// Values and sets of addresses.
#[derive(Debug)]
pub(super) struct Addresses {
    values: NetSet,
    sets: Vec<Arc<NetSet>>,
}

impl Addresses {
    pub(super) fn kind(values: &Values<AddressMatch>, sets: &[Set]) -> Kind<Addresses> {
        let range = |value: &AddressMatch| if let AddressMatch::Range(range) = value { Some(*range) } else { None };
        let set = |value: &AddressMatch| match value {
            AddressMatch::Set(place) => match &sets.get(usize::from(*place))?.entries {
                Entries::Nets(nets) => Some(Arc::clone(nets)),
                Entries::Domains(_) => None,
            },
            AddressMatch::Range(_) => None,
        };
        Kind::new(values, |values| Addresses {
            values: values.iter().filter_map(range).collect(),
            sets: values.iter().filter_map(set).collect(),
        })
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.values.contains(ip) || self.sets.iter().any(|set| set.contains(ip))
    }
}

/// Values and sets of domains.
#[derive(Debug)]
pub(super) struct Domains {
    values: DomainSet,
    sets: Vec<Arc<DomainSet>>,
}

impl Domains {
    pub(super) fn kind(values: &Values<DomainMatch>, sets: &[Set]) -> Kind<Domains> {
        let name = |value: &'_ DomainMatch| match value {
            DomainMatch::Name { name, only_itself } => Some((name.clone(), *only_itself)),
            DomainMatch::Set(_) => None,
        };
        let set = |value: &DomainMatch| match value {
            DomainMatch::Set(place) => match &sets.get(usize::from(*place))?.entries {
                Entries::Domains(domains) => Some(Arc::clone(domains)),
                Entries::Nets(_) => None,
            },
            DomainMatch::Name { .. } => None,
        };
        Kind::new(values, |values| {
            let names: Vec<_> = values.iter().filter_map(name).collect();
            Domains {
                values: names.iter().map(|(name, only_itself)| (name.as_str(), *only_itself)).collect(),
                sets: values.iter().filter_map(set).collect(),
            }
        })
    }

    /// What has no name is in nothing.
    pub(super) fn contains(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.values.contains(name) || self.sets.iter().any(|set| set.contains(name)))
    }
}

/// Ports, sorted and merged.
#[derive(Debug)]
pub(super) struct Ports(Vec<PortRange>);

impl Ports {
    pub(super) fn kind(values: &Values<PortRange>) -> Kind<Ports> {
        Kind::new(values, |values| {
            let mut all = values.to_vec();
            all.sort_unstable_by_key(|range| range.first);
            all.dedup_by(|next, before| {
                let one = next.first <= before.last.saturating_add(1);
                if one {
                    before.last = before.last.max(next.last);
                }
                one
            });
            Ports(all)
        })
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|range| range.first <= port);
        after.checked_sub(1).is_some_and(|at| port <= self.0[at].last)
    }
}

/// MAC addresses, sorted.
#[derive(Debug)]
pub(super) struct Macs(Vec<[u8; 6]>);

impl Macs {
    pub(super) fn kind(values: &Values<Mac>) -> Kind<Macs> {
        Kind::new(values, |values| {
            let mut all: Vec<[u8; 6]> = values.iter().map(|mac| mac.0).collect();
            all.sort_unstable();
            Macs(all)
        })
    }

    pub(super) fn contains(&self, mac: Mac) -> bool {
        self.0.binary_search(&mac.0).is_ok()
    }
}

/// Names of devices; a trailing `*` stands for any rest.
#[derive(Debug)]
pub(super) struct Devices(Vec<String>);

impl Devices {
    pub(super) fn kind(values: &Values<String>) -> Kind<Devices> {
        Kind::new(values, |values| Devices(values.to_vec()))
    }

    pub(super) fn contains(&self, device: &str) -> bool {
        self.0.iter().any(|name| match name.strip_suffix('*') {
            Some(begin) => device.starts_with(begin),
            None => device == name,
        })
    }
}
