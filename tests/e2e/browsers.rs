//! Names as real clients send them: curl, `openssl s_client` and Chromium, to a real server, by rule to the right outbound.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

use crate::daemon::{Daemon, Uci};
use crate::lab::{Family, Lab};
use crate::ns::Namespace;
use crate::process::{Process, TempDir, until_within};
use crate::proxies::nginx;
use crate::sock::{PATIENCE, connect};
use crate::socks::{Manners, Socks};

/// A web server with and without TLS that tells whom it sees; names below `video.example` go to it by the proxy.
struct Site {
    lab: Lab,
    daemon: Daemon,
    _proxy: Socks,
    _server: Process,
    _files: TempDir,
}

const SITE: &str = "203.0.113.80";

impl Site {
    fn start(uci: &Uci) -> Site {
        let (lab, files) = (Lab::new(), TempDir::new());
        let (certificate, key) = (files.path().join("certificate"), files.path().join("key"));
        let mut command = lab.server.command("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "9",
        ]);
        command.args([
            "-subj",
            "/CN=www.video.example",
            "-addext",
            "subjectAltName=DNS:www.video.example,DNS:other.example",
        ]);
        command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        let made = output(command);
        assert!(certificate.exists(), "{made}");
        let http = format!(
            "server {{ listen 198.51.100.2:8000; listen {SITE}:80; listen {SITE}:443 ssl; ssl_certificate {}; \
             ssl_certificate_key {}; default_type text/html; location / {{ return 200 'seen $remote_addr\\n'; }} }}",
            certificate.display(),
            key.display()
        );
        let server = nginx(&lab, &files, Family::V4, 8000, &http);
        let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
        let uci = uci.clone().section(
            "config outbound 'proxy'\n\toption type 'socks5'\n\toption server '198.51.100.2'\n\toption port '1080'
config rule\n\tlist domain 'video.example'\n\toption outbound 'proxy'\n",
        );
        let daemon = Daemon::start(&lab, &uci);
        Site { lab, daemon, _proxy: proxy, _server: server, _files: files }
    }
}

fn sniffing() -> Uci {
    Uci::new("direct").globals(&[("sniff_timeout", "10s")])
}

/// What the site says to who came by the proxy, which is at the same machine, and to who came from the router.
const BY_PROXY: &str = "seen 203.0.113.80";
const DIRECT: &str = "seen 198.51.100.1";

fn expected(name: &str) -> &'static str {
    if name.ends_with("video.example") { BY_PROXY } else { DIRECT }
}

fn output(mut command: Command) -> String {
    let output = command.output().expect("it starts");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Between a client and the router: passes the first octets that the client sends on in two parts.
struct Knife {
    listener: TcpListener,
    at: SocketAddr,
}

impl Knife {
    fn new(ns: &Namespace) -> Knife {
        let listener = crate::sock::listen(ns, "127.0.0.1".parse().expect("an address"), 0);
        let at = listener.local_addr().expect("bound");
        Knife { listener, at }
    }

    /// Takes one connection to `to`; its first octets, a whole TLS record, are cut at `cut`. Returns how many they were.
    fn serve(&self, ns: &Namespace, to: SocketAddr, cut: usize) -> usize {
        let mut near = crate::sock::accept(&self.listener);
        let mut far = connect(ns, to);
        for end in [&near, &far] {
            end.set_nodelay(true).expect("TCP_NODELAY");
        }
        let mut head = crate::sock::read_n(&mut near, 5);
        let rest = usize::from(u16::from_be_bytes([head[3], head[4]]));
        head.extend(crate::sock::read_n(&mut near, rest));
        let cut = cut.min(head.len());
        far.write_all(&head[..cut]).expect("send");
        std::thread::yield_now();
        far.write_all(&head[cut..]).expect("send");
        both_ways(near, far);
        head.len()
    }
}

/// Relays until both have ended.
fn both_ways(near: TcpStream, far: TcpStream) {
    let (mut near, mut far) = (near, far);
    let mut open = [true, true];
    let mut bytes = [0; 16 << 10];
    while open[0] || open[1] {
        let ready: Vec<usize> = (0..2).filter(|side| open[*side]).collect();
        let fds: Vec<_> = ready.iter().map(|side| if *side == 0 { near.as_fd() } else { far.as_fd() }).collect();
        let Some(first) = crate::ns::first_readable(&fds, PATIENCE) else { return };
        let side = ready[first];
        let (from, to) = if side == 0 { (&mut near, &mut far) } else { (&mut far, &mut near) };
        match from.read(&mut bytes) {
            Ok(n @ 1..) if to.write_all(&bytes[..n]).is_ok() => {}
            // the other may have gone already
            _ => {
                let _ = to.shutdown(std::net::Shutdown::Write);
                open[side] = false;
            }
        }
    }
}

/// Runs `client` with the address of a knife that cuts at each of `places` (but `None`: everywhere).
fn cut_everywhere(site: &Site, step: usize, name: &str, client: impl Fn(SocketAddr) -> Command + Sync) {
    let knife = Knife::new(&site.lab.client);
    let to = SocketAddr::new(SITE.parse().expect("an address"), 443);
    let (mut cut, mut len) = (0, usize::MAX);
    while cut < len {
        let said = std::thread::scope(|scope| {
            let said = scope.spawn(|| output(client(knife.at)));
            len = knife.serve(&site.lab.client, to, cut);
            said.join().expect("the client")
        });
        assert!(said.contains(expected(name)), "{name}, cut at {cut} of {len}: {said}");
        cut += step;
    }
}

#[test]
fn curl_is_led_by_name_over_http_and_https() {
    let site = Site::start(&sniffing());
    for (name, scheme, port) in
        [("www.video.example", "https", 443), ("other.example", "https", 443), ("www.video.example", "http", 80)]
    {
        let mut command = site.lab.client.command("curl");
        command.args(["--silent", "--show-error", "--insecure", "--max-time", "20", "--resolve"]);
        command.arg(format!("{name}:{port}:{SITE}")).arg(format!("{scheme}://{name}/"));
        let said = output(command);
        assert!(said.contains(expected(name)), "{scheme}://{name}: {said}");
    }
}

#[test]
fn curl_is_led_by_name_wherever_its_hello_is_cut() {
    let site = Site::start(&sniffing());
    // each tenth place, since openssl is there for each
    for (name, step) in [("www.video.example", 10), ("other.example", 100)] {
        cut_everywhere(&site, step, name, |at| {
            let mut command = site.lab.client.command("curl");
            command.args(["--silent", "--show-error", "--insecure", "--max-time", "20", "--connect-to"]);
            command.arg(format!("{name}:443:{at}")).arg(format!("https://{name}/"));
            command
        });
    }
}

#[test]
fn openssl_is_led_by_name_wherever_its_hello_is_cut() {
    let site = Site::start(&sniffing());
    for (name, step) in [("www.video.example", 1), ("other.example", 29)] {
        cut_everywhere(&site, step, name, |at| {
            let mut command = site.lab.client.command("sh");
            let script =
                "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -quiet -connect \"$0\" -servername \"$1\" 2>&1";
            command.args(["-c", script]).arg(at.to_string()).arg(name);
            command
        });
    }
}

/// Chromium's answer to "what is there?", as root and without the network that it would like to have. Where it shows neither
/// a page nor an error of the network (it hangs, or dumps the empty page that it starts with) it is asked again: it is the
/// witness here, and what it was not shown it can't tell.
fn chromium(site: &Site, url: &str, more: &[String]) -> String {
    let mut said = String::new();
    for _ in 0..3 {
        let profile = TempDir::new();
        let mut command = site.lab.client.command("timeout");
        command.args(["--kill-after=5", "60", "chromium", "--headless", "--no-sandbox", "--disable-gpu"]);
        command.args(["--no-first-run", "--disable-sync", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-dev-shm-usage"]);
        command.args(["--ignore-certificate-errors", "--dump-dom"]).args(more);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url).env("HOME", profile.path());
        said = output(command);
        if said.contains("seen ") || said.contains("ERR_") {
            break;
        }
        println!("{url}: no page and no error, but: {said}");
    }
    said
}

#[test]
fn chromium_is_led_by_name() {
    let site = Site::start(&sniffing());
    let map = [format!("--host-resolver-rules=MAP * {SITE}"), "--disable-quic".to_owned()];
    for url in ["https://www.video.example/", "https://other.example/", "http://www.video.example/"] {
        let said = chromium(&site, url, &map);
        let name = url.trim_end_matches('/').rsplit('/').next().expect("a name");
        assert!(said.contains(expected(name)), "{url}: {said}");
    }
}

/// Nobody answers there: what counts is that its first datagrams, of which one does not hold the name, are understood.
#[test]
fn chromium_is_led_by_name_over_quic() {
    let site = Site::start(&sniffing());
    let profile = TempDir::new();
    let mut command = site.lab.client.command("timeout");
    command.args(["60", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]);
    command.args(["--enable-quic", "--origin-to-force-quic-on=www.video.example:443", "--dump-dom"]);
    command.arg(format!("--host-resolver-rules=MAP * {SITE}"));
    command.arg(format!("--user-data-dir={}", profile.path().display())).env("HOME", profile.path());
    command.arg("https://www.video.example/");
    let browser = Process::start(command);
    let mut flow = None;
    until_within(
        PATIENCE,
        || format!("no datagram came: {}", browser.said()),
        || {
            let sessions = site.daemon.command("sessions", &["--json"]);
            let udp = sessions.split('{').find(|one| one.contains("\"proto\":\"udp\"") && one.contains(":443"));
            flow = udp.map(str::to_owned);
            flow.is_some()
        },
    );
    let flow = flow.expect("it has come");
    assert!(flow.contains("\"domain\":\"www.video.example\"") && flow.contains("\"outbound\":\"proxy\""), "{flow}");
    browser.signal(nix::sys::signal::Signal::SIGTERM);
    browser.wait_end(PATIENCE);
}

#[test]
fn chromium_is_told_of_a_proxy_of_either_kind() {
    for (mode, scheme) in [("http", "http"), ("socks5", "socks5")] {
        let told = [("mode", mode), ("port", "1081"), ("allow_ip", "192.168.1.0/24"), ("device", "lan0")];
        let site = Site::start(&Uci::new("direct").listener(&told));
        let proxy = [format!("--proxy-server={scheme}://192.168.1.1:1081"), "--disable-quic".to_owned()];
        for url in [format!("http://{SITE}/"), format!("https://{SITE}/")] {
            let said = chromium(&site, &url, &proxy);
            assert!(said.contains(DIRECT), "{mode} {url}: {said}");
        }
    }
}
