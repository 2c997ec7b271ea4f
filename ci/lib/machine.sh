# What the build machine lacks: sourced by the scripts in ci/, never run by itself.
# Written for Debian 12 with rustup; everything comes from Debian's archive, PyPI and crates.io.
# shellcheck shell=bash

# Downloads and what is built from them once, shared by all checkouts.
CACHE=${TPROXYD_CACHE:-$HOME/.cache/tproxyd}
mkdir -p "$CACHE"

die() { echo "${0##*/}: $*" >&2; exit 1; }

# need PACKAGE...: installs those Debian packages that are not there yet.
need() {
  local package missing=()
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "these packages are missing: ${missing[*]}; install them, or run this as root once"
  echo "installing ${missing[*]}" >&2
  # An old package list would offer a compiler that is too old, or files that the mirror no longer has.
  DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2 || true
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
    -o DPkg::Lock::Timeout=600 "${missing[@]}" >&2 || die "cannot install ${missing[*]}"
}

# once NAME COMMAND...: runs COMMAND if it never succeeded before in this cache; two callers wait for each other.
once() {
  local name=$1 stamp=$CACHE/$1.done; shift
  [ ! -e "$stamp" ] || return 0
  (
    flock 9
    [ -e "$stamp" ] || { "$@" && touch "$stamp"; }
  ) 9>"$CACHE/$name.lock" || die "cannot prepare $name"
}

# Zig brings a linker and a static musl for every target. The version is part of what makes builds repeatable.
ZIG_VERSION=0.17.0
install_zig() {
  need python3-venv
  python3 -m venv "$CACHE/zig-$ZIG_VERSION" &&
    "$CACHE/zig-$ZIG_VERSION/bin/pip" --quiet install "ziglang==$ZIG_VERSION" >&2
}
need_zig() {
  once "zig-$ZIG_VERSION" install_zig
  ZIG=$(echo "$CACHE/zig-$ZIG_VERSION"/lib/python3*/site-packages/ziglang/zig)
  [ -x "$ZIG" ] || die "no zig in $CACHE/zig-$ZIG_VERSION; remove $CACHE/zig-$ZIG_VERSION.done and try again"
  export ZIG ZIG_GLOBAL_CACHE_DIR=$CACHE/zig-cache ZIG_LOCAL_CACHE_DIR=$CACHE/zig-cache
}
