# The same as test.sh for a router whose firewall is fw3: tproxyd-iptables, iptables' own tools and modules, and no nft.
# shellcheck shell=dash

# shellcheck source=ci/emulated/common.sh
. /common.sh

! command -v nft || fail "there is an nft"

step "check and start"
configure "enabled 1" "log_level debug"
service check || fail "check finds fault"
service start
wait_for 10 relayed
iptables-save -t mangle | grep -q 'TPROXY --on-port 12345' || fail "the rules are not there"
grep -q '^firewall' /var/run/standin/changed || fail "the firewall is not told"

step "a zone whose input is closed"
for tool in iptables ip6tables; do
	for proto in tcp udp; do $tool -A INPUT -i lan0 -p $proto -j REJECT; done
done
traffic
by_socks5

step "by REDIRECT, of all that is not in a set"
(MODE=redirect PORT=12346 NARROW="list dest_ip '!@passed'"; configure "enabled 1" "log_level debug")
printf "config set 'passed'\n\tlist entry '198.51.100.0/24'\n\tlist entry '2001:db8:99::/48'\n" >>/etc/config/tproxyd
service reload
wait_for 10 sh -c "iptables-save -t nat | grep 'REDIRECT --to-ports 12346'"
ipset list -n | grep -q tproxyd || fail "no set in the kernel"
wait_for 10 relayed
traffic
by_socks5

step "fw3 restarts: every table is emptied"
for tool in iptables ip6tables; do
	for table in mangle nat filter raw; do
		$tool -t $table -F
		$tool -t $table -X
	done
done
iptables -t nat -A POSTROUTING -o wan0 -j MASQUERADE
# shellcheck source=files/firewall.include
(. /usr/share/tproxyd/firewall.include)
wait_for 5 sh -c "iptables-save -t nat | grep 'REDIRECT --to-ports 12346'"
wait_for 5 relayed
configure "enabled 1"
service reload
wait_for 10 sh -c "iptables-save -t mangle | grep 'TPROXY --on-port 12345'"
wait_for 10 relayed

step "killed, and back by itself"
kill -KILL "$(cat /var/run/standin/pid)"
wait_for 5 sh -c "! iptables-save | grep tproxyd_pre"
client probe tcp $INTERNET4:7000 1000 || fail "on_failure direct, but nothing passes without the daemon"
wait_for 15 service running
wait_for 10 relayed

step "stop leaves nothing behind"
service stop
! pidof tproxyd || fail "processes are left"
[ "$before" = "$(kernel_state)" ] || { kernel_state; fail "stop left something behind"; }

step "on_failure block: closed from boot until it is stopped on purpose"
configure "enabled 1" "on_failure block"
PATH=/tmp/nothing:$PATH service boot
wait_for 10 relayed
kill -KILL "$(cat /var/run/standin/pid)"
! client timeout 2 probe tcp $INTERNET4:7000 1 2>/dev/null || fail "block, but it passes after a crash"
wait_for 15 client probe tcp $INTERNET4:7000 1
PKG_UPGRADE=1 service stop
iptables-save -t mangle | grep -q -- '-A PREROUTING -j tproxyd_pre' || fail "no block during an upgrade"
! client timeout 2 probe tcp $INTERNET4:7000 1 2>/dev/null || fail "block, but it passes during an upgrade"
service stop
client probe tcp $INTERNET4:7000 1 || fail "stopped on purpose, but nothing passes"
[ "$before" = "$(kernel_state)" ] || { kernel_state; fail "stop left something behind"; }

step "removal"
"/usr/lib/opkg/info/$package.prerm"
! ls /etc/rc.d/*tproxyd 2>/dev/null || fail "links are left"
