# Stands for LuCI's build rules: which part of a folder of pages goes where. Translations (po/) are packages of their own;
# ci/lib/lmo.py stands for LuCI's compiler of catalogues, and writes the same bytes.

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

chinese:=luci-i18n-$(patsubst luci-app-%,%,$(PKG_NAME))-zh-cn

define Package/$(chinese)
  SECTION:=luci
  TITLE:=$(PKG_NAME) - zh-cn translation
  DEPENDS:=$(PKG_NAME)
  PKGARCH:=all
endef

define Package/$(chinese)/description
  Translation for $(PKG_NAME) - 简体中文 (Chinese Simplified)
endef

define Package/$(chinese)/install
	mkdir -p $(1)/etc/uci-defaults $(1)/usr/lib/lua/luci/i18n
	echo "uci set luci.languages.zh_cn='简体中文 (Chinese Simplified)'; uci commit luci" >$(1)/etc/uci-defaults/$(chinese)
	$(foreach po,$(wildcard $(LUCI_DIR)/po/zh_Hans/*.po),python3 $(TREE)/ci/lib/lmo.py $(po) $(1)/usr/lib/lua/luci/i18n/$(basename $(notdir $(po))).zh-cn.lmo;)
endef

$(eval $(call BuildPackage,$(PKG_NAME)))
$(if $(wildcard $(LUCI_DIR)/po/zh_Hans),$(eval $(call BuildPackage,$(chinese))))
