# Debian packages of other architectures and releases, unpacked into a folder: sourced, after machine.sh.
# shellcheck shell=bash

# An apt of its own for SUITE and ARCH: `dpkg --add-architecture` would make this machine's apt ask every one of its
# sources for that architecture, and fail where one has none.
# shellcheck disable=SC2016 # apt's variable
foreign_apt() { # SUITE ARCH COMMAND...
  local suite=$1 arch=$2 state=$CACHE/apt-$1-$2 mirror command=$3
  shift 3
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
  : > "$state/status"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' | sort -u | head -1)
  echo "deb [arch=$arch signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$state/sources.list"
  "$command" -qq -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o APT::Sandbox::User=root \
    -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" -o Dir::State::extended_states="$state/extended" \
    -o Dir::Cache="$state/cache" -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null -o Acquire::Languages=none -o Debug::NoLocking=1 "$@"
}

# Packages and all that they depend on.
unpack_foreign() { # SUITE ARCH FOLDER PACKAGE...
  local suite=$1 arch=$2 folder=$3 archives=$CACHE/apt-$1-$2/cache/archives deb
  shift 3
  mkdir -p "$folder"
  foreign_apt "$suite" "$arch" apt-get update
  foreign_apt "$suite" "$arch" apt-get install --download-only -y --no-install-recommends "$@"
  for deb in "$archives"/*.deb; do dpkg -x "$deb" "$folder"; done
  rm -f "$archives"/*.deb
}

# The newest kernel that a meta package names, without what that depends on.
unpack_kernel() { # SUITE ARCH FOLDER META-PACKAGE
  local image download=$CACHE/apt-$1-$2/kernel
  mkdir -p "$3" "$download"
  foreign_apt "$1" "$2" apt-get update
  image=$(foreign_apt "$1" "$2" apt-cache depends "$4" | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | sort -uV | tail -1)
  [ -n "$image" ] || die "no kernel behind $4 in $1"
  (cd "$download" && foreign_apt "$1" "$2" apt-get download "$image")
  dpkg -x "$download/$image"_*.deb "$3"
  rm -r "$download"
  # Where /lib is a link to /usr/lib (trixie), the package relies on it.
  [ -e "$3/lib/modules" ] || ln -s usr/lib "$3/lib"
  depmod -b "$3" "$(ls "$3/lib/modules")"
}
