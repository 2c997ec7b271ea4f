# Stands for the packages feed's helper: nothing is compiled here.

RUST_ARCH_DEPENDS:=@any
