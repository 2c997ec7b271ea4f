# What is shown in an emulated router (ci/emulate), as root in a machine of its own: the package is installed as opkg
# would, its init script drives the daemon under busybox's ash, and traffic of a client passes by TPROXY.
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
	nft list ruleset | head -n 40
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

# Everything that the daemon may change in the kernel.
kernel_state() {
	nft list ruleset | grep -v counter
	for family in -4 -6; do
		ip $family rule
		ip $family route show table 233 2>/dev/null || true
	done
}

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
nft -f - <<-RULES
	table ip nat {
		chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
	}
RULES
server /bin/probe serve $INTERNET4:7000 &
server /bin/probe serve "[$INTERNET6]:7000" &
server /bin/probe socks 10.0.2.2:1080 &
echo "lan lan0" >/tmp/networks   # answered by the stand-in of ubus

step "the package, as opkg installs it"
tar -xzf /tmp/tproxyd.ipk -C /tmp
tar -tzf /tmp/data.tar.gz | sed -n '/[^/]$/s/^\.//p' >/usr/lib/opkg/info/tproxyd.list
tar -xzf /tmp/data.tar.gz -C /
mkdir /tmp/control
tar -xzf /tmp/control.tar.gz -C /tmp/control
for file in control postinst postinst-pkg prerm prerm-pkg; do
	mv /tmp/control/$file /usr/lib/opkg/info/tproxyd.$file
done
rm /tmp/*.gz /tmp/tproxyd.ipk
before="$(kernel_state)"
/usr/lib/opkg/info/tproxyd.postinst
service enabled || fail "not enabled after installation"
! service running || fail "it runs although the shipped configuration says enabled 0"
tproxyd --version
[ "$before" = "$(kernel_state)" ] || fail "installation changed something"
client probe tcp $INTERNET4:7000 1000 | grep "seen as 10.0.2.1" || fail "no traffic without the daemon"

# configure GLOBALS-LINE...: the configuration of the tests, with more options of globals. By itself, all goes through the
# process. MODE, PORT: of the listener. VERDICTS=1: what the kernel can decide is left to it.
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

step "it starts before the network does"
mv /tmp/networks /tmp/networks.up   # no netifd answers
echo "config interface 'lan'" >/etc/config/network
echo "	option device 'lan0'" >>/etc/config/network
configure "enabled 1" "on_failure block" "tcp_sessions 1024"
PATH=/tmp/nothing:$PATH service boot
wait_for 10 relayed
mv /tmp/networks.up /tmp/networks
# shellcheck disable=SC1091
(ACTION=ifup INTERFACE=lan . /etc/hotplug.d/iface/19-tproxyd)
relayed || fail "not relayed when the network is up"
service stop
[ "$before" = "$(kernel_state)" ] || fail "stop left something behind"

step "check and start"
# (auto would give less than a thousand: the kernel leaves not enough of 64 MB)
configure "enabled 1" "log_level debug" "tcp_sessions 1024"
service check || fail "check finds fault"
service start
wait_for 10 relayed
daemon="$(cat /var/run/standin/pid)"
service status
sed -n 's/^/   ruleset: /p' /var/run/standin/data
grep -q 'target=ACCEPT' /var/run/standin/data || fail "no rule for the zones that are closed"
# shellcheck disable=SC2009 # busybox has no pgrep -u
ps -o user,args | grep '^tproxyd .*tproxyd run' || fail "it does not run as user tproxyd"

step "direct, by the process"
traffic
client probe flows $INTERNET4:7000 200

step "by REDIRECT"
(MODE=redirect PORT=12346; configure "enabled 1" "log_level debug" "tcp_sessions 1024")
service reload
wait_for 10 sh -c "nft list table inet tproxyd | grep redirect"
wait_for 10 relayed
traffic
configure "enabled 1" "log_level debug" "tcp_sessions 1024"
service reload
wait_for 10 sh -c "nft list table inet tproxyd | grep 'tproxy ip to'"
wait_for 10 relayed

step "a zone whose input is closed"
mark="$(sed -n 's/^mark=//p' /var/run/standin/data)"
nft -f - <<-RULES
	table inet zones {
		chain input {
			type filter hook input priority filter;
			iifname "lan0" meta l4proto { tcp, udp } meta mark and ${mark#*/} == ${mark%/*} accept
			iifname "lan0" meta l4proto { tcp, udp } reject
		}
	}
RULES
traffic

step "by SOCKS5"
server /bin/probe serve $INTERNET4:7001 &
server /bin/probe serve "[$INTERNET6]:7001" &
wait_for 10 client probe tcp $INTERNET4:7001 1
client probe tcp $INTERNET4:7001 200000 | grep -v 'seen as 10.0.2.1:' || fail "TCP by SOCKS5"
client probe tcp "[$INTERNET6]:7001" 200000 | grep -v 'seen as \[fd00:2::1\]' || fail "TCP by SOCKS5 over IPv6"
client probe udp $INTERNET4:7001 | grep -v 'seen as 10.0.2.1:' || fail "UDP by SOCKS5"

step "direct, by the kernel"
(VERDICTS=1; configure "enabled 1" "log_level debug" "tcp_sessions 1024")
service reload
wait_for 10 client sh -c "probe tcp [$INTERNET6]:7000 1000 | grep 'seen as .fd00:1::2'"
client probe udp "[$INTERNET6]:7000" | grep 'seen as .fd00:1::2' || fail "UDP over IPv6 does not stay in the kernel"
client probe tcp $INTERNET4:7001 200000 | grep -v 'seen as 10.0.2.1:' || fail "TCP by SOCKS5, beside kernel verdicts"
configure "enabled 1" "log_level debug" "tcp_sessions 1024"
service reload
wait_for 10 relayed

step "a thousand sessions"
ulimit -n 8192
cat >/tmp/measure <<-'SH'
	#!/bin/sh
	for pid in $(pidof tproxyd); do
		echo "   memory of $pid: $(awk '/^(Rss|Pss|Anonymous):/ { print $1, $2, "kB" }' "/proc/$pid/smaps_rollup" | tr '\n' ' ')"
	done
	for pid in $(pidof tproxyd); do cat "/proc/$pid/smaps_rollup"; done | awk '/^Pss:/ { sum += $2 } END { print sum * 1024 }' >/tmp/pss
	free | awk '/^Mem/ { print "   machine: " $2 " kB, available " $7 }'
SH
chmod +x /tmp/measure
/tmp/measure
client probe hold $INTERNET4:7000 1000 /tmp/measure || fail "a thousand sessions"
bound="$(tproxyd status --json | sed -n 's/.*"bound":\([0-9]*\).*/\1/p')"
echo "   all processes together: $(cat /tmp/pss) bytes, bound $bound"
[ "$(cat /tmp/pss)" -le "$bound" ] || fail "more memory than the stated bound"

step "reload"
cp /etc/config/tproxyd /tmp/good
echo "	option no_such_option '1'" >>/etc/config/tproxyd
! service reload || fail "a bad configuration was taken"
! service start || true
kill -0 "$daemon" || fail "a bad configuration ended the daemon"
traffic
cp /tmp/good /etc/config/tproxyd
service reload || fail "reload of a good configuration"
kill -0 "$daemon" || fail "reload ended the daemon"
traffic
grep 'tproxyd' /tmp/messages | tail -n 3
! grep ' [a-z]*\.err .*tproxyd' /tmp/messages | grep -v no_such_option || fail "errors in the log"
grep -q 'daemon.info .*tproxyd' /tmp/messages || fail "nothing in the log with priority info"

step "the WAN is dialled again: its address goes"
cat >/tmp/hold <<-'SH'
	#!/bin/sh
	touch /tmp/held
	sleep 3
SH
chmod +x /tmp/hold
client probe hold $INTERNET4:7000 20 /tmp/hold &
wait_for 20 test -e /tmp/held
ip addr del 10.0.2.1/24 dev wan0
# shellcheck disable=SC1091
(ACTION=ifdown INTERFACE=wan . /etc/hotplug.d/iface/19-tproxyd)
wait_for 2 grep 'lost \[10.0.2.1\]: 20 TCP sessions' /tmp/messages
ip addr add 10.0.2.1/24 dev wan0
ip route add default via 10.0.2.2
kill -0 "$daemon" || fail "hotplug ended the daemon"
traffic

step "the firewall deletes every table"
nft delete table inet tproxyd
/usr/share/tproxyd/firewall.include
wait_for 5 nft list table inet tproxyd
traffic

step "killed, and back by itself"
kill -KILL "$daemon"
client probe tcp $INTERNET4:7000 1000 || fail "on_failure direct, but nothing passes without the daemon"
wait_for 15 service running
wait_for 10 nft list table inet tproxyd
traffic

step "stop leaves nothing behind"
nft delete table inet zones
service stop
! pidof tproxyd || fail "processes are left"
[ "$before" = "$(kernel_state)" ] || { kernel_state; fail "stop left something behind"; }

step "on_failure block: closed from boot until it is stopped on purpose"
configure "enabled 1" "on_failure block"
# at boot, before there is a daemon
PATH=/tmp/nothing:$PATH service boot
wait_for 10 relayed
traffic
kill -KILL "$(cat /var/run/standin/pid)"
! client timeout 2 probe tcp $INTERNET4:7000 1 2>/dev/null || fail "block, but it passes after a crash"
wait_for 15 client probe tcp $INTERNET4:7000 1
PKG_UPGRADE=1 service stop
! client timeout 2 probe tcp $INTERNET4:7000 1 2>/dev/null || fail "block, but it passes during an upgrade"
service start
wait_for 10 client probe tcp $INTERNET4:7000 1
service stop
client probe tcp $INTERNET4:7000 1 || fail "stopped on purpose, but nothing passes"
[ "$before" = "$(kernel_state)" ] || { kernel_state; fail "stop left something behind"; }

step "removal"
/usr/lib/opkg/info/tproxyd.prerm
! ls /etc/rc.d/*tproxyd 2>/dev/null || fail "links are left"
