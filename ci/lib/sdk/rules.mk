# Stands for the part of OpenWrt's SDK that openwrt/*/Makefile uses, so that ci/package makes packages from the same
# Makefiles without the SDK: what goes where, with which mode, and which fields. It builds nothing; ci/cross has done that.

INCLUDE_DIR:=$(TOPDIR)/include
INSTALL_DIR:=install -d -m0755
INSTALL_BIN:=install -m0755
INSTALL_DATA:=install -m0644
INSTALL_CONF:=install -m0600
CP:=cp -fpR
