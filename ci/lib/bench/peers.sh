# What ci/bench measures: one function each, `peer_NAME QUESTION`, sourced by bash here and by busybox's shell in an
# emulated router.
#
#   packages  Debian packages that have it     programs  which of their files it needs
#   works     tcp, udp                         base      what is subtracted: plain forwarding, or a client that itself
#                                                        speaks to the same proxy server
#   start     starts it, puts its process ids into `pids`, and sets its rules (tproxy and redirect of router.sh)
# shellcheck shell=bash disable=SC2034,SC2154

PEERS="forward socks5 tproxyd_kernel tproxyd tproxyd_redirect tproxyd_socks5 tproxyd_ss haproxy redsocks ss_redir floor"

peer_forward() { case $1 in works) echo tcp udp ;; base) echo - ;; esac; }

peer_socks5() {
	case $1 in
	works) echo tcp udp ;;
	base) echo - ;;
	start) start_upstream && export LOAD_SOCKS=$UPSTREAM ;;
	esac
}

# ours: its own rules. VERDICTS, RULES: what the kernel may decide; without, everything goes through the process
tproxyd_with() { # OUTBOUND [MODE]
	cat >$STATE/tproxyd.conf <<-CONFIG
		config globals
			option log_level 'error'
			option kernel_verdicts '${VERDICTS:-0}'
			option default '$1'
			option tcp_sessions '4096'
			option udp_sessions '4096'
			option control '$STATE/control.sock'

		config listener 'lan'
			option mode '${2:-tproxy}'
			option port '12345'
			list device 'lan0'

		config outbound 'up'
			option type 'socks5'
			option server '${UPSTREAM%:*}'
			option port '${UPSTREAM#*:}'

		config outbound 'sealed'
			option type 'shadowsocks'
			option server '${UPSTREAM%:*}'
			option port '8388'
			option method '$SS_METHOD'
			option password 'benchmark'

		${RULES:-}
	CONFIG
	proxy "$TPROXYD" run --config $STATE/tproxyd.conf
	until ${TPROXYD} status --config $STATE/tproxyd.conf >/dev/null 2>&1; do nap; done
}

# The commonest list: some names by the proxy, what is near direct by address, the rest by the proxy. It is near.
peer_tproxyd_kernel() {
	case $1 in
	works) echo tcp udp ;;
	base) echo forward ;;
	start)
		VERDICTS=1
		RULES="
		config rule
			list domain 'video.example'
			option outbound 'up'
		config rule
			list dest_ip '203.0.113.0/24'
			option outbound 'direct'"
		start_upstream && tproxyd_with up ;;
	esac
}

peer_tproxyd() {
	case $1 in
	works) echo tcp udp ;;
	base) echo forward ;;
	start) tproxyd_with direct ;;
	esac
}

peer_tproxyd_redirect() {
	[ "$1" != start ] || { tproxyd_with direct redirect; return; }
	peer_tproxyd "$1"
}

peer_tproxyd_socks5() {
	case $1 in
	works) echo tcp udp ;;
	base) echo socks5 ;;
	start) start_upstream && tproxyd_with up ;;
	esac
}

# The same cipher as ss-redir, and the same server.
peer_tproxyd_ss() {
	case $1 in
	packages) echo shadowsocks-libev ;;
	programs) echo usr/bin/ss-server ;;
	works) echo tcp udp ;;
	base) echo forward ;;
	start) start_ss_server && tproxyd_with sealed ;;
	esac
}

# By another cipher: which one is cheap depends on the processor.
peer_tproxyd_ss_aes() {
	[ "$1" != start ] || SS_METHOD=aes-128-gcm
	peer_tproxyd_ss "$1"
}

peer_haproxy() {
	case $1 in
	packages) echo haproxy ;;
	programs) echo usr/sbin/haproxy ;;
	works) echo tcp ;;
	base) echo forward ;;
	start)
		cat >$STATE/haproxy.conf <<-CONFIG
			global
				nbthread 1
				maxconn 2000
			defaults
				mode tcp
				timeout connect 5s
				timeout client 60s
				timeout server 60s
				option splice-request
				option splice-response
			listen all
				bind 0.0.0.0:12345 transparent
				option transparent
		CONFIG
		proxy haproxy -db -f $STATE/haproxy.conf
		tproxy tcp ;;
	esac
}

peer_redsocks() {
	case $1 in
	packages) echo redsocks ;;
	programs) echo usr/sbin/redsocks ;;
	works) echo tcp udp ;;
	base) echo socks5 ;;
	start)
		cat >$STATE/redsocks.conf <<-CONFIG
			base { log_debug = off; log_info = off; log = "stderr"; daemon = off; redirector = iptables; }
			redsocks { local_ip = 0.0.0.0; local_port = 12345; ip = ${UPSTREAM%:*}; port = ${UPSTREAM#*:}; type = socks5; }
			redudp { local_ip = 0.0.0.0; local_port = 12345; ip = ${UPSTREAM%:*}; port = ${UPSTREAM#*:}; udp_timeout = 60; }
		CONFIG
		start_upstream
		proxy redsocks -c $STATE/redsocks.conf
		redirect
		tproxy udp ;;
	esac
}

# No proxy: each method by itself, in the emulated router alone, whose clock counts instructions.
peer_ciphers() { case $1 in base) echo - ;; esac; }

# It encrypts, which the others do not.
SS_METHOD=chacha20-ietf-poly1305

start_ss_server() {
	in_server ss-server -s "${UPSTREAM%:*}" -p 8388 -k benchmark -m "$SS_METHOD" -u -t 60 >$STATE/ss-server.log 2>&1 &
}

peer_ss_redir() {
	case $1 in
	packages) echo shadowsocks-libev ;;
	programs) echo usr/bin/ss-redir usr/bin/ss-server ;;
	works) echo tcp udp ;;
	base) echo forward ;;
	start)
		start_ss_server
		proxy ss-redir -s "${UPSTREAM%:*}" -p 8388 -b 0.0.0.0 -l 12345 -k benchmark -m "$SS_METHOD" -u -t 60
		redirect
		tproxy udp ;;
	esac
}

# A relay that does nothing else, if BENCH_FLOOR names one: `floor PORT rw|splice`.
peer_floor() {
	case $1 in
	works) echo tcp udp ;;
	base) echo forward ;;
	start)
		proxy "$BENCH_FLOOR" 12345 "${BENCH_FLOOR_FORM:-rw}"
		tproxy tcp udp ;;
	esac
}
