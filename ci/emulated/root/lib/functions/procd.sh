# Stands for procd and its shell functions: one service, one instance, kept under /var/run/standin. As with the real one,
# a service that is set with the same command is left alone, one that is set without an instance is ended, what dies is
# started again after the time that `respawn` says, and nobody waits for the end of what is killed.
# shellcheck shell=dash

STANDIN=/var/run/standin

procd_open_service() {
	INSTANCE='' RESPAWN=''
	mkdir -p "$STANDIN"
	: >"$STANDIN/data"
	: >"$STANDIN/triggers"
}

procd_open_instance() { INSTANCE=1; }
procd_close_instance() { :; }

procd_set_param() {
	local name="$1" word
	shift
	case "$name" in
		command)
			: >"$STANDIN/command.new"
			for word; do echo "$word" >>"$STANDIN/command.new"; done ;;
		respawn) RESPAWN="$2" ;;
		limits) NOFILE="${1#nofile=}" ;;
	esac
}

procd_close_service() {
	service_triggers
	service_data
	if [ -z "$INSTANCE" ]; then
		procd_kill "$1"
	elif procd_running && cmp -s "$STANDIN/command" "$STANDIN/command.new"; then
		rm "$STANDIN/command.new"
	else
		mv "$STANDIN/command.new" "$STANDIN/command"
		rm -f "$STANDIN/ended"
		cat /proc/sys/kernel/random/uuid >"$STANDIN/supervisor"
		supervise "$(cat "$STANDIN/supervisor")" </dev/null >/dev/null 2>&1 &
	fi
}

# Of two starts in a row the later one's supervisor counts.
supervise() { # ID
	local pid supervisor="$1"
	ulimit -n "${NOFILE%% *}"
	# shellcheck disable=SC2046 # the command has no blanks in its words
	set -- $(cat "$STANDIN/command")
	while :; do
		"$@" &
		pid=$!
		echo "$pid" >"$STANDIN/pid"
		while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
		if [ -e "$STANDIN/ended" ] || [ -z "$RESPAWN" ]; then break; fi
		sleep "$RESPAWN"
		if [ -e "$STANDIN/ended" ] || [ "$(cat "$STANDIN/supervisor")" != "$supervisor" ]; then break; fi
	done
}

procd_running() { [ -e "$STANDIN/pid" ] && kill -0 "$(cat "$STANDIN/pid")" 2>/dev/null; }
procd_send_signal() { ubus call service signal "{\"name\":\"$1\",\"signal\":$(kill -l "$3")}"; }
procd_kill() { ubus call service delete '{"name":"tproxyd"}'; }
_procd_status() {
	procd_running || { echo "not running"; return 5; }
	echo "running"
}

procd_set_config_changed() { echo "$1" >>"$STANDIN/changed"; }

procd_open_trigger() { :; }
procd_close_trigger() { :; }
procd_add_reload_trigger() { echo "config $*" >>"$STANDIN/triggers"; }
procd_add_raw_trigger() { echo "event $*" >>"$STANDIN/triggers"; }

json_add_array() { :; }
json_close_array() { :; }
json_add_object() { :; }
json_close_object() { :; }
json_add_string() { echo "$1=$2" >>"$STANDIN/data"; }
