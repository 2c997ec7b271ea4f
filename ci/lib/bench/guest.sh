# In the emulated router: measures PEER, whose figures go to the console.
# shellcheck shell=dash

# busybox's shell would run its own, smaller ip
ip() { /sbin/ip "$@"; }
STATE=/tmp LOAD=/bin/load TPROXYD=/bin/tproxyd BENCH_FLOOR=/bin/floor
export LOAD TPROXYD BENCH_FLOOR
. /bench/router.sh
. /bench/peers.sh
if [ "$PEER" = ciphers ]; then
	"$LOAD" ciphers 8
	exit
fi
"$LOAD" seed >/dev/null
ulimit -n 8192
prepare || exit 1
memory idle
case $works in *" tcp "*)
	for _ in $(seq "${REPEAT:-1}"); do
		measure up bulk up 16 1
		measure down bulk down 16 1
	done
	memory bulk
	measure short short 300 1
	measure short8 short 300 8
	memory short ;;
esac
case $works in *" udp "*)
	in_client "$LOAD" datagrams "$TARGET" 64 64 16 1 >/dev/null
	measure udp64 datagrams 3000 64 16 1
	measure udp1200 datagrams 3000 1200 16 1
	measure udp64x200 datagrams 3000 64 16 200
	measure udp1200x200 datagrams 3000 1200 16 200
	measure newflow datagrams 500 64 16 500
	memory udp ;;
esac
