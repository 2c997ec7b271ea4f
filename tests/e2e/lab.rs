//! The small network of every test: client – router – server, v4 and v6, on a real kernel.
//!
//! ```text
//!  client            router                         server
//!  eth0 ───────── lan0    wan0 ─────────────────── eth0        lo: 203.0.113.0/24, 2001:db8:77::/64
//!  192.168.1.2    192.168.1.1  198.51.100.1        198.51.100.2, .3 (its proxies and name servers)
//!  fd00:1::2      fd00:1::1    2001:db8:1::1       2001:db8:1::2, ::3
//! ```
//!
//! The router's default route points to the server, since prefixes connected to a device without one are passed by.
//! The server answers on every address of its loopback prefixes; packets to [`Family::silent`] vanish there, packets to
//! [`Family::unreachable`] are answered by ICMP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ns::Namespace;

/// IPv4 or IPv6, and the addresses of the laboratory in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
        }
    }

    /// The client's own address.
    pub fn client(self) -> IpAddr {
        self.pick([192, 168, 1, 2], [0xfd00, 1, 0, 0, 0, 0, 0, 2])
    }

    /// The address of [`Lab::second_client`].
    pub fn second_client(self) -> IpAddr {
        self.pick([192, 168, 2, 2], [0xfd00, 2, 0, 0, 0, 0, 0, 2])
    }

    /// The router's address towards the server: what a server sees of a relayed or masqueraded flow.
    pub fn router_wan(self) -> IpAddr {
        self.pick([198, 51, 100, 1], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 1])
    }

    /// The server's address on the link to the router: proxies and name servers listen there.
    pub fn proxy(self) -> IpAddr {
        self.pick([198, 51, 100, 2], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 2])
    }

    /// A second address of the proxy, for a name that moves.
    pub fn second_proxy(self) -> IpAddr {
        self.pick([198, 51, 100, 3], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 3])
    }

    /// One of 254 destinations behind the server.
    pub fn destination(self, n: u8) -> IpAddr {
        self.pick([203, 0, 113, n], [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, u16::from(n)])
    }

    /// Nothing ever comes back from there.
    pub fn silent(self) -> IpAddr {
        self.pick([192, 0, 2, 1], [0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 1])
    }

    /// The server answers packets to it by ICMP host (v6: address) unreachable.
    pub fn unreachable(self) -> IpAddr {
        self.pick([192, 0, 2, 129], [0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 1])
    }

    /// All addresses, any port: what a wildcard socket of this family binds.
    pub fn any(self) -> IpAddr {
        self.pick([0; 4], [0; 8])
    }
}

/// Three namespaces, connected.
pub struct Lab {
    pub client: Namespace,
    pub router: Namespace,
    pub server: Namespace,
    /// Where packets to [`Family::silent`] end: nobody is there.
    void: Namespace,
    /// The switch of [`Lab::on_one_segment`].
    _switch: Option<Namespace>,
}

const CLIENT: &str = "
link set lo up
addr add 192.168.1.2/24 dev eth0
addr add fd00:1::2/64 dev eth0 nodad
link set eth0 up
route add default via 192.168.1.1
route add ::/0 via fd00:1::1
";

const ROUTER: &str = "
link set lo up
addr add 192.168.1.1/24 dev lan0
addr add fd00:1::1/64 dev lan0 nodad
link set lan0 up
addr add 198.51.100.1/24 dev wan0
addr add 2001:db8:1::1/64 dev wan0 nodad
link set wan0 up
route add default via 198.51.100.2
route add ::/0 via 2001:db8:1::2
";

const VOID: &str = "link set eth0 up\n";

const SERVER: &str = "
link set lo up
addr add 198.51.100.2/24 dev eth0
addr add 198.51.100.3/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
addr add 2001:db8:1::3/64 dev eth0 nodad
link set eth0 up
route add 192.168.1.0/24 via 198.51.100.1
route add fd00:1::/64 via 2001:db8:1::1
route add local 203.0.113.0/24 dev lo
route add local 2001:db8:77::/64 dev lo
link set nowhere arp off up
route add 192.0.2.0/25 dev nowhere
route add 2001:db8:99::/64 dev nowhere
route add unreachable 192.0.2.128/25
route add unreachable 2001:db8:98::/64
";

impl Lab {
    /// Builds the network; it is gone when the value is dropped, or the process ends.
    pub fn new() -> Lab {
        let [client, router, server, void] = std::array::from_fn(|_| Namespace::new());
        let lab = Lab { client, router, server, void, _switch: None };
        for ns in [&lab.client, &lab.router, &lab.server] {
            // No duplicate address detection: an address must be usable at once. ICMP errors must not be rationed,
            // for the tests count on each.
            ns.sysctl(&[
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv6/icmp/ratelimit", "0"),
            ]);
        }
        for ns in [&lab.router, &lab.server] {
            ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
        }
        lab.server.sysctl(&[("ipv6/ip_nonlocal_bind", "1")]);
        let veth = |near, peer: &Namespace| format!("link add {near} type veth peer name eth0 netns {}\n", peer.path());
        let router = veth("lan0", &lab.client) + &veth("wan0", &lab.server) + ROUTER;
        let server = veth("nowhere", &lab.void) + SERVER;
        for (ns, batch) in [(&lab.router, &*router), (&lab.client, CLIENT), (&lab.server, &*server), (&lab.void, VOID)]
        {
            ns.tool("ip", &["-batch", "-"], batch);
        }
        lab
    }

    /// Client, main router and box on one LAN (see `segment.rs`): [`Lab::router`] is the box, whose only device is `lan0`;
    /// the main router is returned beside. `box_is_gateway`: the client's default route leads to the box.
    pub fn on_one_segment(box_is_gateway: bool) -> (Lab, Namespace) {
        let [client, main, router, server, void, switch] = std::array::from_fn(|_| Namespace::new());
        for ns in [&client, &main, &router, &server] {
            ns.sysctl(&[("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/all/accept_dad", "0")]);
        }
        for ns in [&main, &router, &server] {
            ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]);
        }
        server.sysctl(&[("ipv6/ip_nonlocal_bind", "1")]);
        let mut cables = String::from("link add br0 type bridge\nlink set br0 up\n");
        for (n, (ns, device)) in [(&client, "eth0"), (&main, "br-lan"), (&router, "lan0")].into_iter().enumerate() {
            cables += &format!("link add port{n} type veth peer name {device} netns {}\n", ns.path());
            cables += &format!("link set port{n} master br0\nlink set port{n} up\n");
        }
        switch.tool("ip", &["-batch", "-"], &cables);
        let wan = format!("link add wan0 type veth peer name eth0 netns {}\n", server.path());
        let nowhere = format!("link add nowhere type veth peer name eth0 netns {}\n", void.path());
        let gateway = if box_is_gateway { ("192.168.1.254", "fd00:1::fe") } else { ("192.168.1.1", "fd00:1::1") };
        let of_client = CLIENT.replace("via 192.168.1.1\n", &format!("via {}\n", gateway.0));
        let of_client = of_client.replace("via fd00:1::1\n", &format!("via {}\n", gateway.1));
        let of_main = wan + &ROUTER.replace("lan0", "br-lan");
        for (ns, batch) in
            [(&main, &*of_main), (&router, BOX), (&client, &*of_client), (&server, &*(nowhere + SERVER)), (&void, VOID)]
        {
            ns.tool("ip", &["-batch", "-"], batch);
        }
        (Lab { client, router, server, void, _switch: Some(switch) }, main)
    }

    /// A client in a second network, on the router's `lan1`. The server has no way back to it.
    pub fn second_client(&self) -> Namespace {
        let client = Namespace::new();
        client.sysctl(&[("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/all/accept_dad", "0")]);
        let cable = format!("link add lan1 type veth peer name eth0 netns {}\n{SECOND_NETWORK}", client.path());
        self.router.tool("ip", &["-batch", "-"], &cable);
        client.tool("ip", &["-batch", "-"], SECOND_CLIENT);
        client
    }

    /// As [`Lab::new`], but the router's `lan0` is a port of its bridge `br-lan`, as on OpenWrt, and it has another bridge,
    /// `docker0`.
    pub fn behind_a_bridge() -> Lab {
        let lab = Lab::new();
        lab.router.tool("ip", &["-batch", "-"], BRIDGE);
        lab
    }

    /// A client in a network of its own behind another router of [`Lab::on_one_segment`], and its addresses, v4 and v6.
    pub fn client_behind(&self, main: &Namespace) -> (Namespace, [IpAddr; 2]) {
        let client = Namespace::new();
        client.sysctl(&[("ipv6/conf/default/accept_dad", "0")]);
        let renamed = |text: &str| text.replace("192.168.2.", "192.168.7.").replace("fd00:2::", "fd00:7::");
        let cable = format!("link add lan1 type veth peer name eth0 netns {}\n{SECOND_NETWORK}", client.path());
        main.tool("ip", &["-batch", "-"], &renamed(&cable));
        client.tool("ip", &["-batch", "-"], &renamed(SECOND_CLIENT));
        let far = [[192, 168, 7, 2].into(), [0xfd00, 7, 0, 0, 0, 0, 0, 2].into()];
        (client, far)
    }

    /// Another network of the house, 192.168.2.0/24 behind `guest0`, with one device, .2.
    pub fn guest(&self) -> Namespace {
        let guest = Namespace::new();
        let cable = format!(
            "link add guest0 type veth peer name eth0 netns {}\naddr add 192.168.2.1/24 dev guest0\nlink set guest0 up\n",
            guest.path()
        );
        self.router.tool("ip", &["-batch", "-"], &cable);
        let far = "addr add 192.168.2.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.2.1\n";
        guest.tool("ip", &["-batch", "-"], far);
        guest
    }

    /// Makes the router an ordinary one: it knows its connections, and its own address stands before what it forwards
    /// (v4). The server, like any on the internet, has no way back to the client's private address then.
    pub fn masquerade(&self) {
        self.router.tool("nft", &["-f", "-"], MASQUERADE);
        self.server.tool("ip", &["route", "del", "192.168.1.0/24"], "");
    }

    /// Makes the router one with the firewall of OpenWrt.
    pub fn firewall(&self) {
        self.router.tool("nft", &["-f", "-"], FW4);
    }

    /// Makes the router know its connections, as a stateful firewall does.
    pub fn track_connections(&self) {
        self.router.tool("nft", &["-f", "-"], FIREWALL);
    }
}

const BOX: &str = "
link set lo up
link set lan0 address 02:00:5e:10:00:fe
addr add 192.168.1.254/24 dev lan0
addr add fd00:1::fe/64 dev lan0 nodad
link set lan0 up
route add default via 192.168.1.1
route add ::/0 via fd00:1::1
";

const BRIDGE: &str = "
addr flush dev lan0
link add docker0 type bridge
link add br-lan type bridge
link set lan0 master br-lan
addr add 192.168.1.1/24 dev br-lan
addr add fd00:1::1/64 dev br-lan nodad
link set br-lan up
";

const SECOND_NETWORK: &str = "
addr add 192.168.2.1/24 dev lan1
addr add fd00:2::1/64 dev lan1 nodad
link set lan1 up
";

const SECOND_CLIENT: &str = "
link set lo up
addr add 192.168.2.2/24 dev eth0
addr add fd00:2::2/64 dev eth0 nodad
link set eth0 up
route add default via 192.168.2.1
route add ::/0 via fd00:2::1
";

/// What fw4 makes of a router with the zones lan (all accepted), guest on `lan1` (input and forward to lan rejected) and
/// wan, with `drop_invalid`, and with the rule that our package adds: accepted by mark.
const FW4: &str = "
table inet fw4 {
    chain input {
        type filter hook input priority filter; policy drop;
        iifname lo accept
        ct state vmap { established : accept, related : accept, invalid : drop }
        meta mark & 0x03000000 == 0x01000000 accept comment \"tproxyd\"
        meta l4proto { icmp, ipv6-icmp } accept
        iifname lan0 accept
        reject
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        ct status dnat accept
        meta l4proto { icmp, ipv6-icmp } accept
        iifname { lan0, lan1 } oifname wan0 accept
        reject
    }
    chain output {
        type filter hook output priority filter; policy accept;
        oifname lo accept
        ct state vmap { established : accept, related : accept, invalid : drop }
    }
}
";

const MASQUERADE: &str = "
table inet firewall {
    chain srcnat {
        type nat hook postrouting priority srcnat; policy accept;
        oifname wan0 masquerade
    }
}
";

const FIREWALL: &str = "
table inet firewall {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
    }
}
";
