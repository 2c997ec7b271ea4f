# Root file systems of emulated machines: sourced, after machine.sh and foreign.sh, with these set:
#   image      the folder that becomes the root file system
#   user       Debian's programs for that machine, unpacked      libraries  where they have their libraries
#   boot       its kernel, unpacked                              version    the kernel's version
# shellcheck shell=bash disable=SC2154

# A program of Debian's with the libraries that it names.
install_program() { # FILE [FOLDER]
  local from=${2:-$user}
  cp "$from/$1" "$image/sbin/"
  install_libraries "$from/$1" "$from"
}
install_libraries() { # FILE FOLDER
  local name file
  for name in $(readelf -d "$1" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p'); do
    [ ! -e "$image/$libraries/$name" ] || continue
    file=$(find "$2/$libraries" "$2/usr/$libraries" -maxdepth 1 -name "$name" 2>/dev/null | head -1)
    [ -n "$file" ] || file=$(find "$2" -name "$name" | head -1)
    cp -L "$file" "$image/$libraries/$name"
    install_libraries "$file" "$2"
  done
}

# The loader of programs that are not static.
install_loader() {
  local loader
  loader=$(readelf -l "$user/bin/ip" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
  mkdir -p "$image$(dirname "$loader")"
  cp -L "$user$loader" "$image$loader"
}

install_modules() { # MODULE...
  local module file
  mkdir -p "$image/lib/modules"
  for module; do modprobe -d "$boot" -S "$version" --show-depends "$module" 2>/dev/null || true; done |
    awk '/^insmod/ && !seen[$2]++ { print $2 }' |
    while read -r file; do
      case $file in *.xz) xz -dc "$file" > "$image/lib/modules/$(basename "$file" .xz)" ;; *) cp "$file" "$image/lib/modules/" ;; esac
      basename "$file" .xz
    done > "$image/lib/modules/order"
}

# pack_image FILE: the same files give the same bytes.
pack_image() {
  find "$image" -newermt @0 -exec touch --no-dereference --date=@0 {} +
  (cd "$image" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --reproducible -R 0:0 | gzip -1n) > "$1"
}
