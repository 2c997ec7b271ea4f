# Stands for LuCI's build rules: which part of a folder of pages goes where. Translations (po/) are packages of their own
# there, made by LuCI's own compiler; here they are left out, and the pages speak English.

PKG_NAME?=$(notdir $(CURDIR))
PKG_RELEASE?=1
LUCI_DIR:=$(CURDIR)

include $(INCLUDE_DIR)/package.mk

define Package/$(PKG_NAME)
  SECTION:=luci
  TITLE:=$(LUCI_TITLE)
  DEPENDS:=$(LUCI_DEPENDS)
  PKGARCH:=all
endef

define Package/$(PKG_NAME)/description
  $(or $(LUCI_DESCRIPTION),$(LUCI_TITLE))
endef

# Each file with one of two modes, however the tree was checked out.
copy=if [ -x "$(1)" ]; then install -D -m0755 "$(1)" "$(2)"; else install -D -m0644 "$(1)" "$(2)"; fi
files=$(shell cd $(LUCI_DIR) && find $(1) -type f 2>/dev/null | LC_ALL=C sort)

define Package/$(PKG_NAME)/install
	$(foreach file,$(call files,htdocs),$(call copy,$(LUCI_DIR)/$(file),$(1)/www/$(file:htdocs/%=%));)
	$(foreach file,$(call files,root),$(call copy,$(LUCI_DIR)/$(file),$(1)/$(file:root/%=%));)
endef

define Package/$(PKG_NAME)/postinst
#!/bin/sh
[ -n "$${IPKG_INSTROOT}" ] || {
	rm -f /tmp/luci-indexcache.*
	rm -rf /tmp/luci-modulecache/
	/etc/init.d/rpcd reload 2>/dev/null
}
endef

$(eval $(call BuildPackage,$(PKG_NAME)))
