use super::*;

fn at(port: u16) -> Endpoint {
    SocketAddr::from(([192, 168, 1, 2], port)).into()
}

fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n], 53))
}

fn local() -> Endpoint {
    SocketAddr::from(([192, 168, 1, 1], 2333)).into()
}

fn learn(redirects: &mut Redirects, seen: u16, client_port: u16, to: SocketAddr, now: u32) {
    let from = SocketAddr::new(at(0).ip(), client_port);
    redirects.learn(at(seen), local(), Tuple { from, to }, 3, Tick(now));
}

#[test]
fn a_remapped_port_leads_back_by_the_clients_own() {
    let mut redirects = Redirects::new(8, 1);
    learn(&mut redirects, 40_000, 40_000, server(1), 0);
    learn(&mut redirects, 63_300, 40_000, server(2), 0);
    let back = redirects.way_back(at(40_000).address(), server(2), Tick(1)).unwrap();
    assert_eq!((back.peer, back.local, back.listener), (at(63_300).address(), local().address(), 3));
    assert!(redirects.way_back(at(63_300).address(), server(2), Tick(1)).is_none());
    assert!(redirects.way_back(at(40_000).address(), server(3), Tick(1)).is_none());
}

#[test]
fn a_full_table_forgets_the_flow_idle_longest_and_counts_it() {
    let mut redirects = Redirects::new(8, 1);
    for n in 0..16 {
        learn(&mut redirects, 40_000 + n, 40_000 + n, server(1), n.into());
    }
    redirects.way_back(at(40_000).address(), server(1), Tick(20)).unwrap();
    learn(&mut redirects, 50_000, 50_000, server(1), 21);
    assert_eq!((redirects.len(), redirects.evicted()), (16, 1));
    assert!(redirects.way_back(at(40_000).address(), server(1), Tick(22)).is_some());
    assert!(redirects.way_back(at(40_001).address(), server(1), Tick(22)).is_none());
}

#[test]
fn a_port_that_serves_another_flow_by_now_takes_the_place_of_the_old() {
    let mut redirects = Redirects::new(8, 1);
    learn(&mut redirects, 40_000, 40_000, server(1), 0);
    learn(&mut redirects, 40_000, 40_000, server(2), 1);
    assert_eq!(redirects.len(), 1);
    assert!(redirects.way_back(at(40_000).address(), server(1), Tick(2)).is_none());
    assert!(redirects.way_back(at(40_000).address(), server(2), Tick(2)).is_some());
}

#[test]
fn a_flow_whose_entry_cannot_be_kept_is_forgotten() {
    let mut redirects = Redirects::new(8, 1);
    learn(&mut redirects, 40_000, 40_000, SocketAddr::from(([203, 0, 113, 1], 443)), 0);
    let due = redirects.deadline().unwrap();
    redirects.expire(due);
    assert!(redirects.is_empty(), "nobody could be asked to keep it");
}
