//! Golden files of the other backend, loaded by both of its kinds.

use super::*;

/// The same configurations, for iptables.
fn by_iptables(cfg: &Config) -> Facts {
    Facts { backend: Backend::Iptables, ..facts(cfg) }
}

/// As [`compare`], and both kinds load it.
fn golden(name: &str, text: &str) {
    compare(name, text);
    loads(text);
}

/// Has the helper's check and the tools themselves take it, as both families, in a namespace of its own.
fn loads(text: &str) {
    use std::io::Write;
    let sent = crate::netfilter::iptables::only_ours(text.to_string());
    assert!(sent.is_ok(), "{sent:?}");
    let script = "mount -t tmpfs none /run && cat >/run/f && sed -n 's/^#ipset //p' /run/f | ipset restore || exit 1
        for kind in nft legacy; do
            # newer kernels may be built without it
            [ $kind = nft ] || xtables-legacy-multi iptables -t mangle -nL >/dev/null 2>&1 || continue
            for tool in iptables ip6tables; do
                xtables-$kind-multi $tool-restore --noflush --test /run/f || exit 1
                xtables-$kind-multi $tool-restore --noflush /run/f || exit 1
            done
        done";
    let mut command = std::process::Command::new("unshare");
    command.args(["-Urnm", "sh", "-c", script]).stdin(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "iptables refuses: {:.500}\n{text}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn every_way_of_narrowing_and_a_block() {
    let cfg = narrowed();
    golden("narrowed.iptables", &render(&cfg, &by_iptables(&cfg)));
    golden("block-only.iptables", &render_block(&cfg, &by_iptables(&cfg)));
}

#[test]
fn tproxy_beside_redirect_and_what_the_router_sends() {
    let (mut first, mut last) = (listener("first", 2334), listener("last", 2335));
    first.mode = Mode::Redirect;
    (last.mode, last.device, last.address) = (Mode::Redirect, vec!["lan1".into()], Some("::1".parse().unwrap()));
    let mut lan = listener("lan", 2333);
    (first.router, lan.router) = (true, true);
    lan.protos = Protos { tcp: true, udp: false };
    let mut cfg = config(vec![first, lan, last]);
    golden("redirect.iptables", &render(&cfg, &by_iptables(&cfg)));
    loads(&render_block(&cfg, &by_iptables(&cfg)));
    cfg.globals.on_failure = OnFailure::Block;
    let one_arm = Facts { ways_out: vec!["br-lan".into()], ..by_iptables(&cfg) };
    let text = render(&cfg, &one_arm);
    assert_eq!(text.matches("-j MASQUERADE").count(), 2, "{text}");
    loads(&text);
}

#[test]
fn rules_are_left_to_the_process() {
    let cfg = ruled();
    let text = render(&cfg, &by_iptables(&cfg));
    assert!(!text.contains("ipset") && text.contains("TPROXY"), "{text}");
    loads(&text);
}

#[test]
fn without_ipv6_there_is_nothing_to_take_of_it() {
    let cfg = config(vec![listener("lan", 2333)]);
    let v4_only = Facts { families: Families { v4: true, v6: false }, ..by_iptables(&cfg) };
    let text = render(&cfg, &v4_only);
    assert!(!text.lines().any(|line| line.starts_with("-6") && line.contains("TPROXY")), "{text}");
    loads(&text);
}
