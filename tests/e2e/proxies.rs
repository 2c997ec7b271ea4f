//! Proxies and servers of other people, started in the server's namespace on port 3128 or where the test says.

use std::net::SocketAddr;

use crate::daemon::Uci;
use crate::lab::{Family, Lab};
use crate::process::{Process, TempDir};
use crate::sock::until_listening;

/// Where HTTP proxies listen.
pub const HTTP_PORT: u16 = 3128;

/// A configuration whose outbound of type `kind` is at one of them.
pub fn served(kind: &str, family: Family, port: u16) -> Uci {
    let (server, port) = (family.proxy().to_string(), port.to_string());
    Uci::new(kind).outbound(&[("server", &server), ("port", &port)])
}

/// tinyproxy on all addresses. `login`: the `BasicAuth` line, or nothing.
pub fn tinyproxy(lab: &Lab, files: &TempDir, family: Family, port: u16, login: &str) -> Process {
    let text = format!(
        "Port {port}\nListen {}\nTimeout 600\nMaxClients 100\nLogLevel Connect\nDisableViaHeader Yes\n{login}\n",
        family.any()
    );
    let config = files.write(&format!("tinyproxy-{port}.conf"), &text);
    let mut command = lab.server.command("tinyproxy");
    command.arg("-d").arg("-c").arg(&config);
    until(lab, family, port, Process::start(command))
}

/// HAProxy, whose HTTP side passes requests on to a tinyproxy behind it.
pub fn haproxy_before_tinyproxy(lab: &Lab, files: &TempDir, family: Family) -> [Process; 2] {
    let behind = tinyproxy(lab, files, family, HTTP_PORT + 1, "");
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n timeout tunnel 60s\n\
         listen proxy\n bind {}\n server tinyproxy {}\n",
        at(family.proxy(), HTTP_PORT),
        at(family.proxy(), HTTP_PORT + 1)
    );
    [haproxy(lab, files, family, HTTP_PORT, &text), behind]
}

/// HAProxy with this configuration, which listens at `port`.
pub fn haproxy(lab: &Lab, files: &TempDir, family: Family, port: u16, text: &str) -> Process {
    let config = files.write("haproxy.cfg", text);
    let mut command = lab.server.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    until(lab, family, port, Process::start(command))
}

/// HAProxy that passes connections at port 8000 on to port 9001 as they are.
pub fn passing_on(lab: &Lab, files: &TempDir, family: Family) -> Process {
    let [front, back, ready] = [8_000, 9_001, 8_001].map(|port| at(family.proxy(), port));
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen pass\n bind {front}\n server far {back}\nlisten ready\n bind {ready}\n"
    );
    // to ask at the front would lead to what listens behind
    haproxy(lab, files, family, 8_001, &text)
}

/// Squid, which never keeps root: so it is not to be had where there is no other user.
pub fn squid(lab: &Lab, files: &TempDir, family: Family, more: &str) -> Option<Process> {
    let map = std::fs::read_to_string("/proc/self/uid_map").expect("a map of users");
    if map.split_ascii_whitespace().last().is_none_or(|count| count.len() < 5) {
        println!("not tested with squid: it refuses to run as root, the only user here");
        return None;
    }
    let port = HTTP_PORT;
    let text = format!(
        "http_port {}\n{more}http_access allow all\ncache deny all\naccess_log none\npid_filename none\n\
         cache_log /dev/null\ncoredump_dir none\nnetdb_filename none\npinger_enable off\ncache_mem 1 MB\n\
         half_closed_clients on\nshutdown_lifetime 0 seconds\nvisible_hostname proxy.example\n",
        at(family.proxy(), port)
    );
    let config = files.write("squid.conf", &text);
    // it leaves shared memory behind when it is killed: that is to go with its mount namespace
    let mut command = lab.server.command("sh");
    command.args(["-c", "mount -t tmpfs none /dev/shm && exec squid -N -f \"$1\"", "sh"]).arg(&config);
    Some(until(lab, family, port, Process::start(command)))
}

/// nginx with these blocks in its `http`, one of which listens at `port`.
pub fn nginx(lab: &Lab, files: &TempDir, family: Family, port: u16, http: &str) -> Process {
    let dir = files.path().display();
    let text = format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off;\nclient_body_temp_path {dir};\nproxy_temp_path {dir};\nfastcgi_temp_path {dir};\n\
         uwsgi_temp_path {dir};\nscgi_temp_path {dir};\n{http}\n}}\n"
    );
    let config = files.write("nginx.conf", &text);
    let mut command = lab.server.command("nginx");
    command.arg("-c").arg(&config).arg("-p").arg(files.path()).args(["-e", "stderr"]);
    until(lab, family, port, Process::start(command))
}

/// nginx with these blocks in its `stream`, one of which listens at `port`.
pub fn nginx_stream(lab: &Lab, files: &TempDir, family: Family, port: u16, stream: &str) -> Process {
    let dir = files.path().display();
    let text = format!(
        "load_module {NGINX_STREAM};\ndaemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr;\n\
         events {{}}\nstream {{\n{stream}\n}}\n"
    );
    let config = files.write("nginx-stream.conf", &text);
    let mut command = lab.server.command("nginx");
    command.arg("-c").arg(&config).arg("-p").arg(files.path()).args(["-e", "stderr"]);
    until(lab, family, port, Process::start(command))
}

const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// `address:port`, with brackets where they belong.
pub fn at(ip: std::net::IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn until(lab: &Lab, family: Family, port: u16, process: Process) -> Process {
    until_listening(&lab.server, at(family.proxy(), port));
    process
}
