# Stands for OpenWrt's /lib/functions.sh where there is no OpenWrt: what tproxyd's scripts and opkg's wrappers call, in the
# simplest form that behaves the same for them. It shows that the scripts run under busybox's ash and in which order
# things happen; it is no proof for OpenWrt's own functions.
# shellcheck shell=dash disable=SC2013,SC1090

# Sections become variables: CONFIG_SECTIONS, CONFIG_<section>_TYPE, CONFIG_<section>_<option>; lists are joined by blanks.
config_load() {
	local word name value rest number=0 section=''
	CONFIG_SECTIONS=''
	[ -f "${IPKG_INSTROOT}/etc/config/$1" ] || return 1
	while read -r word name rest; do
		value="${rest#[\'\"]}"
		value="${value%[\'\"]}"
		case "$word" in
			config)
				number=$((number + 1))
				section="${value:-cfg$number}"
				CONFIG_SECTIONS="$CONFIG_SECTIONS $section"
				eval "CONFIG_${section}_TYPE=\$name" ;;
			option) eval "CONFIG_${section}_$name=\$value" ;;
			list) eval "CONFIG_${section}_$name=\"\${CONFIG_${section}_$name:+\$CONFIG_${section}_$name }\$value\"" ;;
		esac
	done <"${IPKG_INSTROOT}/etc/config/$1"
}

config_get() { # VARIABLE SECTION OPTION DEFAULT
	eval "$1=\${CONFIG_${2}_$3:-\$4}"
}

config_get_bool() {
	local value
	config_get value "$2" "$3" "$4"
	case "$value" in
		1 | on | true | yes | enabled) value=1 ;;
		0 | off | false | no | disabled) value=0 ;;
		*) value="$4" ;;
	esac
	eval "$1=\$value"
}

config_foreach() { # FUNCTION TYPE
	local section type
	for section in $CONFIG_SECTIONS; do
		config_get type "$section" TYPE
		[ "$type" != "$2" ] || "$1" "$section"
	done
}

# The package whose scripts run, and its list of files, which opkg and apk keep in different places.
read_package() { # /usr/lib/opkg/info/NAME.postinst (apk names the package by a variable)
	root="$IPKG_INSTROOT"
	name="${1##*/}"
	name="${pkgname:-${name%.*}}"
	info="$root/usr/lib/opkg/info/$name"
	list="$root/lib/apk/packages/$name.list"
	[ -f "$list" ] || list="$info.list"
}

# As the real ones: users, uci-defaults (on a running router only), the package's own script, then its services.
default_postinst() {
	local name info list script root code=0
	read_package "$1"
	[ -f "$root/lib/apk/packages/$name.list" ] || add_group_and_user "$1"
	if [ -z "$root" ]; then
		for script in $(grep '^/etc/uci-defaults/' "$list"); do
			[ ! -f "$script" ] || { (. "$script") && rm -f "$script"; }
		done
	fi
	[ ! -f "$info.postinst-pkg" ] || (. "$info.postinst-pkg") || code=1
	for script in $(grep '^/etc/init.d/' "$list"); do
		if [ -n "$root" ]; then
			/bin/sh "$root/etc/rc.common" "$root$script" enable
		else
			[ "$PKG_UPGRADE" = 1 ] || "$script" enable
			"$script" start
		fi
	done
	return $code
}

default_prerm() {
	local name info list script root code=0
	read_package "$1"
	[ ! -f "$info.prerm-pkg" ] || (. "$info.prerm-pkg") || code=1
	for script in $(grep '^/etc/init.d/' "$list"); do
		if [ -n "$root" ]; then
			/bin/sh "$root/etc/rc.common" "$root$script" disable
		else
			[ "$PKG_UPGRADE" = 1 ] || "$script" disable
			"$script" stop
		fi
	done
	return $code
}

add_group_and_user() {
	local name info list root wanted
	read_package "$1"
	wanted="$(cat "$root/lib/apk/packages/$name.rusers" 2>/dev/null || sed -n 's/^Require-User: *//p' "$info.control")"
	local user="${wanted%%:*}" group="${wanted#*:}"
	[ -n "$user" ] || return 0
	grep -q "^$group:" "$root/etc/group" || echo "$group:x:65536:" >>"$root/etc/group"
	grep -q "^$user:" "$root/etc/passwd" || echo "$user:x:65536:65536:$user:/var/run/$user:/bin/false" >>"$root/etc/passwd"
}
