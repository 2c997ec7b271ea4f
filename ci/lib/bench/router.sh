# The network of ci/bench: client – router – server, where this shell runs in the router. Sourced by bash here, in
# namespaces of their own, and by busybox's shell in an emulated router.
#
# LOAD and STATE are set: the program that makes the load, and a folder for files.
#
#   client 192.168.1.2 – lan0 router wan0 – 10.0.2.2 server, where 203.0.113.9 is, too
# shellcheck shell=bash

TARGET=203.0.113.9:7000 UPSTREAM=10.0.2.2:1080
pids=''

in_client() { ip netns exec client "$@"; }
in_server() { ip netns exec server "$@"; }

nap() { sleep 0.1; }

# The program under test, and where it runs.
# shellcheck disable=SC2086 # a command in words
proxy() {
	${ON_PROXY_CPU:-} "$@" >$STATE/proxy.log 2>&1 &
	pids="$pids $!"
}

start_upstream() {
	# shellcheck disable=SC2086
	in_server ${ON_LOAD_CPU:-} "$LOAD" socks "$UPSTREAM" >$STATE/upstream.log 2>&1 &
}

network() {
	ip link set lo up
	ip netns add client
	ip netns add server
	for side in "client lan0 192.168.1" "server wan0 10.0.2"; do
		# shellcheck disable=SC2086 # three words
		set -- $side
		ip link add "$2" type veth peer name eth0 netns "$1"
		ip addr add "$3.1/24" dev "$2"
		ip link set "$2" up
		ip -n "$1" link set lo up
		ip -n "$1" addr add "$3.2/24" dev eth0
		ip -n "$1" link set eth0 up
		ip -n "$1" route add default via "$3.1"
		# As an Ethernet driver without segmentation of its own: what is on the wire has the size of a packet, and is merged
		# again on arrival. WIRE=veth keeps packets of 64 KB.
		if [ "${WIRE:-}" != veth ]; then
			for feature in "tso off" "gso on" "gro on"; do
				# shellcheck disable=SC2086
				"$LOAD" nic "$2" $feature >/dev/null
				# shellcheck disable=SC2086
				ip netns exec "$1" "$LOAD" nic eth0 $feature >/dev/null
			done
		fi
	done
	ip route add default via 10.0.2.2
	ip -n server addr add "${TARGET%:*}/32" dev lo
	echo 1 >/proc/sys/net/ipv4/ip_forward
	nft -f - <<-RULES
		table inet fw {
			chain forward { type filter hook forward priority filter; policy accept; ct state established,related accept; }
			chain post { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
		}
	RULES
}

# Rules for those that bring none: what is needed and no more.
tproxy() { # tcp|udp...
	ip rule add fwmark 1 lookup 100 2>/dev/null
	ip route replace local default dev lo table 100
	nft -f - <<-RULES
		table inet rival {
			chain divert { type filter hook prerouting priority -155; policy accept; meta l4proto tcp socket transparent 1 meta mark set 1 accept; }
			chain pre { type filter hook prerouting priority mangle; policy accept;
				iifname "lan0" ip daddr 192.168.1.1 accept
				iifname "lan0" meta l4proto { $(echo "$*" | tr ' ' ,) } tproxy ip to :12345 meta mark set 1 accept
			}
		}
	RULES
}

redirect() {
	nft -f - <<-RULES
		table ip rival4 {
			chain pre { type nat hook prerouting priority dstnat; policy accept; iifname "lan0" meta l4proto tcp redirect to :12345; }
		}
	RULES
}

# measure WORK LOAD-ARGUMENT...: one line of figures
measure() {
	work=$1 command=$2
	shift 2
	# shellcheck disable=SC2086
	figures=$(LOAD_PIDS=$pids in_client ${ON_LOAD_CPU:-} "$LOAD" "$command" "$TARGET" "$@" 2>&1) ||
		{ echo "E $PEER $work $figures"; return; }
	echo "R ${ROUND:-0} $PEER $work $figures"
}

# Exact, where /proc/PID/status lags.
memory() { # WHEN
	for pid in $pids; do
		echo "M ${ROUND:-0} $PEER $1 $(awk '/^(Rss|Pss|Private_Dirty|Anonymous):/ { print tolower($1), $2 }' "/proc/$pid/smaps_rollup" | tr -d : | tr '\n' ' ')"
	done
}

# Starts what PEER names, up to where it can be measured.
prepare() {
	network
	# shellcheck disable=SC2086
	in_server ${ON_LOAD_CPU:-} "$LOAD" serve "$TARGET" >$STATE/server.log 2>&1 &
	"peer_$PEER" start
	works=" $("peer_$PEER" works) "
	# whoever has no way to say that it is ready
	tries=100
	until in_client "$LOAD" short "$TARGET" 1 1 >$STATE/ready.log 2>&1 && ! grep -q 'failed 1' $STATE/ready.log; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || { echo "E $PEER is not ready: $(tail -n 3 $STATE/proxy.log $STATE/ready.log)"; return 1; }
		nap
	done
	in_client "$LOAD" short "$TARGET" 20 1 >/dev/null
}
