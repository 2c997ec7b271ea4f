//! Three network namespaces in one process: client, router, server. A thread lives in each and runs what it is given.
//!
//! ```text
//! client 192.168.1.2 .3, fd00:1::2  ──  lan0 192.168.1.1 router wan0 203.0.113.1  ──  server 203.0.113.2, 2001:db8::2
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

/// How long something that must happen may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// How long to look for something that must not happen.
pub(crate) const BRIEF: Duration = Duration::from_millis(400);

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Namespace {
    jobs: mpsc::Sender<Job>,
    pub(crate) path: String,
}

impl Namespace {
    fn new() -> Namespace {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())).unwrap();
            todo.into_iter().for_each(|job| job());
        });
        let namespace = Namespace { jobs, path: told.recv().unwrap() };
        // Without duplicate address detection link-local addresses can be used at once.
        namespace
            .sh("ip link set lo up; for d in all default; do echo 0 > /proc/sys/net/ipv6/conf/$d/accept_dad; done");
        namespace
    }

    /// Runs `work` in the namespace and gives its result.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().expect("the work in the namespace panicked")
    }

    /// What a shell script prints in the namespace; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (script, shown) = (script.to_string(), script.to_string());
        let done = self.run(move || Command::new("sh").args(["-ec", &script]).output().unwrap());
        assert!(done.status.success(), "{shown}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

pub(crate) struct Lab {
    pub(crate) client: Namespace,
    pub(crate) router: Namespace,
    pub(crate) server: Namespace,
}

/// Runs `test` in a fresh lab; without root once more as root of a user namespace of its own.
pub(crate) fn lab(test: impl FnOnce(Lab)) {
    let may = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap();
    if may {
        return test(Lab::new());
    }
    let name = thread::current().name().unwrap().to_string();
    let exe = std::env::current_exe().unwrap();
    let done = Command::new("unshare").arg("-Urnm").arg(exe).args([&name, "--exact", "--nocapture"]).status().unwrap();
    assert!(done.success(), "{name} failed in its user namespace");
}

impl Lab {
    fn new() -> Lab {
        let (client, router, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        router.sh(&format!(
            "ip link add lan0 type veth peer name eth0 netns {}
             ip link add wan0 type veth peer name eth0 netns {}
             ip addr add 192.168.1.1/24 dev lan0; ip addr add fd00:1::1/64 dev lan0 nodad
             ip addr add 203.0.113.1/24 dev wan0; ip addr add 2001:db8::1/64 dev wan0 nodad
             ip link set lan0 up; ip link set wan0 up
             ip route add default via 203.0.113.2; ip route add default via 2001:db8::2
             echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             nft add table ip nat
             nft add chain ip nat out '{{ type nat hook postrouting priority srcnat; }}'
             nft add rule ip nat out oifname wan0 masquerade",
            client.path, server.path
        ));
        client.sh("ip addr add 192.168.1.2/24 dev eth0; ip addr add 192.168.1.3/24 dev eth0
             ip addr add fd00:1::2/64 dev eth0 nodad; ip link set eth0 up
             ip route add default via 192.168.1.1; ip route add default via fd00:1::1");
        server.sh("ip addr add 203.0.113.2/24 dev eth0; ip addr add 2001:db8::2/64 dev eth0 nodad; ip link set eth0 up
             ip addr add 198.51.100.7/32 dev lo; ip route add fd00:1::/64 via 2001:db8::1");
        server.run(|| {
            for port in [80, 81, 1080] {
                tcp_service(TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).unwrap(), "server");
                udp_service(UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, port)).unwrap());
            }
        });
        // The first packet of each way waits for its neighbour to be found, which may take a second.
        for to in ["203.0.113.2:80", "[2001:db8::2]:80"] {
            client.run(move || TcpStream::connect_timeout(&to.parse().unwrap(), SOON).unwrap());
        }
        Lab { client, router, server }
    }

    /// A TCP connection of the client from `source`.
    pub(crate) fn connect_from(&self, source: &str, to: &str) -> std::io::Result<Talk> {
        let (source, to): (SocketAddr, SocketAddr) = (source.parse().unwrap(), to.parse().unwrap());
        self.client.run(move || connect(source, to))
    }

    pub(crate) fn connect(&self, to: &str) -> std::io::Result<Talk> {
        self.connect_from(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }, to)
    }

    /// A UDP socket of the client.
    pub(crate) fn udp(&self, source: &str) -> UdpSocket {
        let source: SocketAddr = source.parse().unwrap();
        self.client.run(move || {
            let socket = UdpSocket::bind(source).unwrap();
            socket.set_read_timeout(Some(BRIEF)).unwrap();
            socket
        })
    }
}

fn connect(source: SocketAddr, to: SocketAddr) -> std::io::Result<Talk> {
    use std::os::fd::AsFd;
    use tproxyd::sys::socket::{self, Family, Transport};
    let fd = socket::open(Family::of(to), Transport::Tcp)?;
    socket::bind(fd.as_fd(), source)?;
    socket::connect(fd.as_fd(), to)?;
    let stream = TcpStream::from(fd);
    use nix::poll::{PollFd, PollFlags, poll};
    let milliseconds = BRIEF.as_millis() as u16;
    if poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], milliseconds)? == 0 {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SOON))?;
    Talk::new(stream)
}

/// A connection to one of the services here: each line is answered by the service's name, its own address and the peer's.
pub(crate) struct Talk {
    stream: TcpStream,
}

impl Talk {
    fn new(stream: TcpStream) -> std::io::Result<Talk> {
        Ok(Talk { stream })
    }

    /// Who answers: `(name, address it has, address it sees)`.
    pub(crate) fn ask(&mut self) -> std::io::Result<(String, String, String)> {
        self.stream.write_all(b"?")?;
        let mut answer = [0; 256];
        let n = self.stream.read(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..n]).into_owned();
        let mut words = text.split_whitespace().map(str::to_string);
        let mut next = || words.next().ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        Ok((next()?, next()?, next()?))
    }

    pub(crate) fn who(&mut self) -> String {
        self.ask().unwrap().0
    }
}

/// Answers each octet on each connection by `NAME LOCAL PEER`.
pub(crate) fn tcp_service(listener: TcpListener, name: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut octet = [0];
                while stream.read_exact(&mut octet).is_ok() {
                    let (local, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
                    if stream.write_all(format!("{name} {local} {peer}\n").as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Answers each datagram by the address it came from.
fn udp_service(socket: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(from.to_string().as_bytes(), from);
        }
    });
}

/// What stands in for the daemon: transparent sockets on a port. Ends, like a process, when dropped.
pub(crate) struct Stub {
    pub(crate) udp: UdpSocket,
    pub(crate) udp6: UdpSocket,
    listeners: Vec<TcpListener>,
}

impl Stub {
    pub(crate) fn open(lab: &Lab, port: u16, name: &'static str) -> Stub {
        lab.router.run(move || {
            use std::os::fd::AsFd;
            use tproxyd::sys::socket::{self, Family, Transport};
            use tproxyd::sys::sockopt;
            let open = |family, transport| {
                let fd = socket::open(family, transport).unwrap();
                sockopt::set_reuse_address(fd.as_fd()).unwrap();
                match family {
                    Family::V4 => sockopt::set_ipv4_transparent(fd.as_fd()).unwrap(),
                    Family::V6 => {
                        sockopt::set_v6_only(fd.as_fd(), true).unwrap();
                        sockopt::set_ipv6_transparent(fd.as_fd()).unwrap();
                    }
                }
                let any: std::net::IpAddr = match family {
                    Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
                    Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
                };
                socket::bind(fd.as_fd(), SocketAddr::new(any, port)).unwrap();
                fd
            };
            let udp = |family| {
                let socket = UdpSocket::from(open(family, Transport::Udp));
                socket.set_nonblocking(false).unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket
            };
            let (udp, udp6) = (udp(Family::V4), udp(Family::V6));
            let mut listeners = Vec::new();
            for family in [Family::V4, Family::V6] {
                let fd = open(family, Transport::Tcp);
                socket::listen(fd.as_fd(), 16).unwrap();
                let listener = TcpListener::from(fd);
                listener.set_nonblocking(false).unwrap();
                tcp_service(listener.try_clone().unwrap(), name);
                listeners.push(listener);
            }
            Stub { udp, udp6, listeners }
        })
    }

    /// Where the next datagram comes from, and the octets of it.
    pub(crate) fn datagram(&self) -> std::io::Result<(SocketAddr, Vec<u8>)> {
        let mut buffer = [0; 2048];
        let (n, from) = self.udp.recv_from(&mut buffer)?;
        Ok((from, buffer[..n].to_vec()))
    }

    /// True if nothing has arrived.
    pub(crate) fn is_quiet(&self) -> bool {
        self.udp.set_read_timeout(Some(BRIEF)).unwrap();
        let quiet = self.datagram().is_err();
        self.udp.set_read_timeout(Some(SOON)).unwrap();
        quiet
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes the thread that waits in accept(2), which ends and closes its copy.
            let _ =
                nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(listener), nix::sys::socket::Shutdown::Both);
        }
    }
}

/// `command` with its streams piped.
pub(crate) fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}
