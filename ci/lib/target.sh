# What each target needs: sourced, after machine.sh, by the scripts in ci/.
# shellcheck shell=bash disable=SC2034

# Every target that routers of today ask for, and the big-endian machine with a real kernel.
TARGETS="armv7-unknown-linux-musleabi mipsel-unknown-linux-musl mips-unknown-linux-musl aarch64-unknown-linux-musl x86_64-unknown-linux-musl"

# describe TARGET sets:
#   zig_target, zig_cpu  what Zig calls it; without the CPU, Zig's musl for ARM would use the VFP that a Cortex-A9 router lacks
#   runner               command that runs its programs here
#   tools                prefix of its binutils
#   rust_flags           more for rustc
#   opt_level            z, as OpenWrt's own builds force it, where flash is small; s gives 10 % more code (ci/size)
#   router_names         OpenWrt's names of the architectures that can run it (DISTRIB_ARCH in /etc/openwrt_release).
#                        The programs are static and soft-float, so a core with an FPU runs them as well. Names that
#                        stand for MIPS32 release 1 (mips_mips32, mipsel_mips32) are left out: rustc emits release 2.
describe() {
  zig_cpu='' runner='' tools='' rust_flags='' opt_level=z router_names=''
  case $1 in
    armv7-unknown-linux-musleabi)
      zig_target=thumb-linux-musleabi zig_cpu=generic+v7a+soft_float-fpregs tools=arm-linux-gnueabi-
      runner="qemu-arm-static -cpu cortex-a9,vfp=off,neon=off"
      # Thumb-2, which every ARMv7 has: 27 % less flash than ARM's own instructions. Linked at a fixed address it is anyhow:
      # code that knows it needs no table to find itself, 2 % less, and constant tables are pages shared with the helper.
      rust_flags="-Ctarget-feature=+thumb-mode -Crelocation-model=static"
      router_names="arm_cortex-a9 arm_cortex-a5_vfpv4 arm_cortex-a7 arm_cortex-a7_neon-vfpv4 arm_cortex-a7_vfpv4
        arm_cortex-a8_vfpv3 arm_cortex-a9_neon arm_cortex-a9_vfpv3-d16 arm_cortex-a15_neon-vfpv4" ;;
    mipsel-unknown-linux-musl)
      # 13 % less flash: code of a program that stays where it is linked needs no table to find itself
      rust_flags="-Crelocation-model=static"
      zig_target=mipsel-linux-musleabi tools=mipsel-linux-gnu-
      runner="qemu-mipsel-static -cpu 24Kc" router_names="mipsel_24kc mipsel_24kc_24kf mipsel_74kc" ;;
    mips-unknown-linux-musl)
      rust_flags="-Crelocation-model=static"
      zig_target=mips-linux-musleabi tools=mips-linux-gnu-
      runner="qemu-mips-static -cpu 24Kc" router_names="mips_24kc mips_4kec" ;;
    aarch64-unknown-linux-musl)
      zig_target=aarch64-linux-musl tools=aarch64-linux-gnu- opt_level=s runner="qemu-aarch64-static -cpu cortex-a53"
      router_names="aarch64_cortex-a53 aarch64_cortex-a72 aarch64_cortex-a76 aarch64_generic" ;;
    x86_64-unknown-linux-musl)
      zig_target=x86_64-linux-musl opt_level=s router_names=x86_64 ;;
    s390x-unknown-linux-musl)
      zig_target=s390x-linux-musl tools=s390x-linux-gnu- runner=qemu-s390x-static
      router_names=s390x ;; # no router, and no name of OpenWrt's: a package for ci/emulate
    *) die "unknown target $1; known are $TARGETS s390x-unknown-linux-musl" ;;
  esac
}

# The Debian package with the binutils of the target described last.
binutils_of() { case $tools in '') echo binutils ;; *) echo "binutils-${tools%-}" ;; esac; }
