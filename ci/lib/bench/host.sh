# ci/bench on this machine, in namespaces of its own: measures PEER once, whose figures go to standard output.
# shellcheck shell=bash
set -u
bench=$(dirname "$0")
# shellcheck source=ci/lib/bench/router.sh
. "$bench/router.sh"
# shellcheck source=ci/lib/bench/peers.sh
. "$bench/peers.sh"
# Names of namespaces, and files, of this run alone.
mount -t tmpfs none /run
STATE=/run/bench
mkdir "$STATE"
ulimit -n "$(ulimit -H -n)"
prepare || exit 1
memory idle
case $works in *" tcp "*)
	measure up bulk up 256 1
	measure down bulk down 256 1
	measure up8 bulk up 256 8
	measure down8 bulk down 256 8
	measure up1g bulk up 125 1 1000
	measure down1g bulk down 125 1 1000
	measure short short 1000 50
	memory short ;;
esac
case $works in *" udp "*)
	in_client "$LOAD" datagrams "$TARGET" 64 64 16 1 >/dev/null
	measure udp64 datagrams 20000 64 64 1
	measure udp1200 datagrams 20000 1200 64 1
	measure udp64x1000 datagrams 20000 64 64 1000
	measure udp1200x1000 datagrams 20000 1200 64 1000
	memory udp ;;
esac
