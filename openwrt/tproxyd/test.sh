#!/bin/sh
# Run by the feed's CI on the target: $1 is the package, $2 its version. Each command ends at once and needs no network.

case "$1" in
	tproxyd|tproxyd-mini|tproxyd-iptables) ;;
	*) exit 0 ;;
esac

tproxyd --version | grep -F "$2" || exit 1

# The shipped configuration is good, and one with a mistake is refused with status 2 and the line of the mistake.
tproxyd check --config-only || exit 1
printf 'config globals\n\toption no_such_option 1\n' | tproxyd check --config-only --config - 2>/tmp/tproxyd.err
[ $? = 2 ] || exit 1
grep ':2' /tmp/tproxyd.err || exit 1
