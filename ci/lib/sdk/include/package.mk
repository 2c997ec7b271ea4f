# make -C openwrt/NAME stage PACKAGE=… ARCH=… EPOCH=… TREE=… PROGRAMS=… STAGE=…
#
# puts PACKAGE's files under STAGE/root and its control files under STAGE/control, as OpenWrt's package-pack.mk does
# before it calls ipkg-build. Both folders must be there. TREE is the source tree, PROGRAMS/bin/… what was built. What an
# .apk wants to know beside that is put into STAGE/default and STAGE/user. `make list` prints the packages.

PKG_BUILD_DIR:=$(TREE)
PKG_INSTALL_DIR:=$(PROGRAMS)
BUILD_VARIANT:=

empty:=
comma:=,
define newline


endef

# "+a +b @c" becomes "a, b": what is behind @ is a condition on the target, not a package
names=$(subst $(empty) $(empty),$(comma) ,$(strip $(patsubst +%,%,$(filter-out @%,$(1)))))
field=$(if $(strip $(2)),$(1): $(strip $(2))$(newline))

define control
Package: $(PACKAGE)
Version: $(PKG_VERSION)-r$(PKG_RELEASE)
$(call field,Depends,$(call names,$(DEPENDS)))$(call field,Conflicts,$(call names,$(CONFLICTS)))$(call field,Provides,$(call names,$(PROVIDES)))Source: openwrt/$(PKG_NAME)
SourceName: $(PKG_NAME)
License: $(PKG_LICENSE)
$(call field,LicenseFiles,$(PKG_LICENSE_FILES))Section: $(SECTION)
$(call field,Require-User,$(USERID))SourceDateEpoch: $(EPOCH)
$(call field,URL,$(URL))Maintainer: $(PKG_MAINTAINER)
Architecture: $(or $(PKGARCH),$(ARCH))
Installed-Size: 0
endef

# Sets the fields of package $(1), and only those.
select=$(foreach f,DEPENDS CONFLICTS PROVIDES USERID DEFAULT_VARIANT PKGARCH,$(eval $f:=))$(eval $(Package/$(1)))

define BuildPackage
  $(call select,$(1))
  PACKAGES+=$(if $(filter @BROKEN,$(DEPENDS)),,$(1))
endef

RustBinPackage=

.PHONY: list stage
.DEFAULT_GOAL:=list
list:
	@echo $(PACKAGES)

# A package's own scripts are called by the default ones (opkg knows them as postinst-pkg and prerm-pkg).
stage:
	$(call select,$(PACKAGE))
	@$(file >$(STAGE)/control/control,$(control))
	@$(if $(DEFAULT_VARIANT),$(file >$(STAGE)/default))
	@$(if $(USERID),$(file >$(STAGE)/user,$(USERID)))
	@$(file >$(STAGE)/description,$(Package/$(PACKAGE)/description))
	@$(if $(Package/$(PACKAGE)/conffiles),$(file >$(STAGE)/control/conffiles,$(Package/$(PACKAGE)/conffiles)))
	@$(if $(Package/$(PACKAGE)/postinst),$(file >$(STAGE)/control/postinst-pkg,$(Package/$(PACKAGE)/postinst)))
	@$(if $(Package/$(PACKAGE)/prerm),$(file >$(STAGE)/control/prerm-pkg,$(Package/$(PACKAGE)/prerm)))
	@$(subst $(newline),$(newline)@,$(call Package/$(PACKAGE)/install,$(STAGE)/root))
