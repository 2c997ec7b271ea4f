# What the tests in emulated routers (ci/emulate) share, sourced first: the network, the package installed as opkg would, and
# what sends traffic of a client through.
#
#   client 192.168.1.2, fd00:1::2 – lan0 router wan0 – server 10.0.2.2, fd00:2::2, and "the internet" behind it
# shellcheck shell=dash

# busybox's shell would run its own, smaller ip
ip() { /sbin/ip "$@"; }
client() { /sbin/ip netns exec client "$@"; }
server() { /sbin/ip netns exec server "$@"; }
service() { /etc/init.d/tproxyd "$@"; }

step() { echo "-- $(cut -d' ' -f1 /proc/uptime) $*"; }

fail() {
	echo "FAILED: $*"
	grep -v debug /tmp/messages | tail -n 30
	list_rules | head -n 60
	exit 1
}

# wait_for SECONDS COMMAND...
wait_for() {
	local tries=$(($1 * 5))
	shift
	until "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || fail "waited in vain for: $*"
		sleep 0.2
	done
}

# By whichever of both there is.
list_rules() {
	if [ -x /sbin/nft ]; then
		nft list ruleset | grep -v counter
	else
		# empty tables come with the first look at them
		{ iptables-save; ip6tables-save; ipset save; } | grep -e ^-A -e tproxyd || true
	fi
}

# Everything that the daemon may change in the kernel.
kernel_state() {
	list_rules
	for family in -4 -6; do
		ip $family rule
		ip $family route show table 233 2>/dev/null || true
	done
	cat $FLOWTABLE 2>/dev/null || true
}
FLOWTABLE=/proc/sys/net/netfilter/nf_flowtable_tcp_timeout   # since Linux 5.14

INTERNET4=203.0.113.9 INTERNET6=2001:db8:77::9

step "the network"
ip netns add client
ip netns add server
for side in "client lan0 192.168.1 fd00:1" "server wan0 10.0.2 fd00:2"; do
	# shellcheck disable=SC2086 # four words
	set -- $side
	ip link add "$2" type veth peer name eth0 netns "$1"
	ip addr add "$3.1/24" dev "$2"
	ip -6 addr add "$4::1/64" dev "$2" nodad
	ip link set "$2" up
	ip -n "$1" link set lo up
	ip -n "$1" addr add "$3.2/24" dev eth0
	ip -n "$1" -6 addr add "$4::2/64" dev eth0 nodad
	ip -n "$1" link set eth0 up
done
ip -n client route add default via 192.168.1.1
ip -n client -6 route add default via fd00:1::1
ip -n server addr add $INTERNET4/32 dev lo
ip -n server -6 addr add $INTERNET6/128 dev lo
ip -n server -6 route add fd00:1::/64 via fd00:2::1
ip route add default via 10.0.2.2
ip -6 route add default via fd00:2::2
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
# OpenWrt's own figure; the kernel's, for so little memory, would be used up by 300 sessions
echo 16384 >/proc/sys/net/netfilter/nf_conntrack_max
if [ -x /sbin/nft ]; then
	nft -f - <<-RULES
		table ip nat {
			chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
		}
	RULES
else
	iptables -t nat -A POSTROUTING -o wan0 -j MASQUERADE
fi
server /bin/probe serve $INTERNET4:7000 &
server /bin/probe serve "[$INTERNET6]:7000" &
server /bin/probe serve $INTERNET4:7001 &
server /bin/probe serve "[$INTERNET6]:7001" &
server /bin/probe socks 10.0.2.2:1080 &
echo "lan lan0" >/tmp/networks   # answered by the stand-in of ubus

step "the package, as opkg installs it"
tar -xzf /tmp/package.ipk -C /tmp
mkdir /tmp/control
tar -xzf /tmp/control.tar.gz -C /tmp/control
package="$(sed -n 's/^Package: //p' /tmp/control/control)"
tar -tzf /tmp/data.tar.gz | sed -n '/[^/]$/s/^\.//p' >"/usr/lib/opkg/info/$package.list"
tar -xzf /tmp/data.tar.gz -C /
for file in control postinst postinst-pkg prerm prerm-pkg; do
	mv /tmp/control/$file "/usr/lib/opkg/info/$package.$file"
done
rm /tmp/*.gz /tmp/package.ipk
before="$(kernel_state)"
"/usr/lib/opkg/info/$package.postinst"
service enabled || fail "not enabled after installation"
! service running || fail "it runs although the shipped configuration says enabled 0"
tproxyd --version
[ "$before" = "$(kernel_state)" ] || fail "installation changed something"
client probe tcp $INTERNET4:7000 1000 | grep "seen as 10.0.2.1" || fail "no traffic without the daemon"

# configure GLOBALS-LINE...: the configuration of the tests, with more options of globals. By itself, all goes through the
# process. MODE, PORT: of the listener. NARROW: a line of its own. VERDICTS=1: what the kernel can decide is left to it.
configure() {
	{
		echo "config globals 'globals'"
		echo "	option kernel_verdicts ${VERDICTS:-0}"
		for line; do echo "	option $line"; done
		cat <<-UCI
			config listener 'lan'
				option mode '${MODE:-tproxy}'
				option port '${PORT:-12345}'
				list network 'lan'
				${NARROW:-}
			config outbound 'proxy'
				option type 'socks5'
				option server '10.0.2.2'
				option port '1080'
			config rule
				option name 'by proxy'
				list dest_port '7001'
				option outbound 'proxy'
		UCI
	} >/etc/config/tproxyd
}

# Nobody masquerades IPv6 here: a server that sees the router's address speaks to the daemon.
relayed() {
	client probe tcp "[$INTERNET6]:7000" 1 | grep -q 'seen as \[fd00:2::1\]'
}

traffic() {
	client probe tcp $INTERNET4:7000 200000 || fail "TCP over IPv4"
	client probe tcp "[$INTERNET6]:7000" 200000 || fail "TCP over IPv6"
	client probe udp $INTERNET4:7000 || fail "UDP over IPv4"
	client probe udp "[$INTERNET6]:7000" | grep 'seen as \[fd00:2::1\]' || fail "UDP over IPv6 is not relayed"
	relayed || fail "TCP over IPv6 is not relayed"
}

# By the rule for port 7001.
by_socks5() {
	client probe tcp $INTERNET4:7001 200000 | grep -v 'seen as 10.0.2.1:' || fail "TCP by SOCKS5"
	client probe tcp "[$INTERNET6]:7001" 200000 | grep -v 'seen as \[fd00:2::1\]' || fail "TCP by SOCKS5 over IPv6"
	client probe udp $INTERNET4:7001 | grep -v 'seen as 10.0.2.1:' || fail "UDP by SOCKS5"
	client probe udp "[$INTERNET6]:7001" | grep -v 'seen as \[fd00:2::1\]' || fail "UDP by SOCKS5 over IPv6"
}
