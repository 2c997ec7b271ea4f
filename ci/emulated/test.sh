# What is shown in an emulated router (ci/emulate), as root in a machine of its own: the package's init script drives the
# daemon under busybox's ash, and traffic of a client passes by TPROXY and REDIRECT, with the rules in nftables.
# shellcheck shell=dash

# shellcheck source=ci/emulated/common.sh
. /common.sh

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

step "a zone whose input is closed, from here on"
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

step "by SOCKS5"
by_socks5

step "direct, by the kernel"
(VERDICTS=1; configure "enabled 1" "log_level debug" "tcp_sessions 1024")
service reload
wait_for 10 client sh -c "probe tcp [$INTERNET6]:7000 1000 | grep 'seen as .fd00:1::2'"
client probe udp "[$INTERNET6]:7000" | grep 'seen as .fd00:1::2' || fail "UDP over IPv6 does not stay in the kernel"
client probe tcp $INTERNET4:7001 200000 | grep -v 'seen as 10.0.2.1:' || fail "TCP by SOCKS5, beside kernel verdicts"
configure "enabled 1" "log_level debug" "tcp_sessions 1024"
service reload
wait_for 10 relayed

step "a rule with hours, and a flow that is offloaded"
refused() { ! client probe tcp $INTERNET4:7000 1 2>/dev/null; }
served() { client probe tcp $INTERNET4:7000 1 | grep 'seen as 10.0.2.1'; }
# Says something; true when the other end is gone.
ended() {
	echo "x" >&3 || true
	! kill -0 "$talker" 2>/dev/null
}
offloaded() {
	echo "x" >&3
	grep OFFLOAD /proc/net/nf_conntrack
}
trap '' PIPE
nft -f - <<-RULES
	table inet fastpath {
		flowtable ft {
			hook ingress priority filter
			devices = { lan0, wan0 }
		}
		chain through {
			type filter hook forward priority filter
			meta l4proto { tcp, udp } flow add @ft
		}
	}
RULES
real="$(date +%s)"
echo 'CET-1CEST,M3.5.0,M10.5.0/3' >/etc/TZ
date -u -s '2026-03-28 19:50:00'   # 20:50 in that zone
(VERDICTS=1; configure "enabled 1" "log_level debug" "tcp_sessions 1024")
cat >>/etc/config/tproxyd <<-UCI
	config rule
		option name 'night'
		option dest_port '7000'
		option start_time '21:00'
		option stop_time '06:00'
		option outbound 'reject'
UCI
service reload
wait_for 10 client sh -c "probe tcp [$INTERNET6]:7000 1000 | grep 'seen as .fd00:1::2'"
mkfifo /tmp/talk
client nc ${INTERNET4} 7000 </tmp/talk >/dev/null &
talker=$!
exec 3>/tmp/talk
wait_for 10 offloaded
if [ -e $FLOWTABLE ]; then
	date -u -s '2026-03-28 19:59:55'
	wait_for 20 ended
	tproxyd status | grep 'holds now, for 7 h 59 min\|holds now, for 8 h' || fail "status, with an hour less in the night to summer time"
else
	kill "$talker"
fi
exec 3>&-
step "the clock is set back, and forward, over a change to summer time, and to where it is not known"
date -u -s '2026-03-28 12:00:00'
wait_for 10 served
date -u -s '2026-03-28 22:00:00'
wait_for 10 refused
date -u -s '2026-03-29 03:59:55'   # it is 05:59:55 there by now
wait_for 20 served
date -u -s '1970-01-01 12:00:00'
wait_for 10 refused
date -u -s "@$real"
nft delete table inet fastpath
rm /etc/TZ
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
# a thousand ends at once keep a slow machine busy
wait_for 30 sh -c "tproxyd status --json >/tmp/status"
bound="$(sed -n 's/.*"bound":\([0-9]*\).*/\1/p' /tmp/status)"
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
	while [ -e /tmp/held ]; do sleep 0.2; done
SH
chmod +x /tmp/hold
client probe hold $INTERNET4:7000 20 /tmp/hold &
wait_for 20 test -e /tmp/held
ip addr del 10.0.2.1/24 dev wan0
# shellcheck disable=SC1091
(ACTION=ifdown INTERFACE=wan . /etc/hotplug.d/iface/19-tproxyd)
wait_for 10 sh -c "! tproxyd sessions | grep ' tcp '"   # while the client still holds them
rm /tmp/held
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
"/usr/lib/opkg/info/$package.prerm"
! ls /etc/rc.d/*tproxyd 2>/dev/null || fail "links are left"
