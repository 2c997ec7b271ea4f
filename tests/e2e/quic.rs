//! Names in QUIC, asked for by a real client of a real server (quinn).

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::rustls::{ClientConfig, RootCertStore, ServerConfig};
use quinn::{Endpoint, EndpointConfig, TokioRuntime, default_runtime};

use crate::daemon::{Daemon, Uci};
use crate::json::Json;
use crate::lab::{Family, Lab};
use crate::sock::PATIENCE;
use crate::socks::{Asked, Manners, Socks};

/// A server of `names` that sends back what it gets, and what trusts it.
fn serve(socket: UdpSocket, names: &[&str]) -> (Endpoint, RootCertStore) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let certificate = CertificateDer::from(made.cert);
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .expect("a server's configuration");
    config.alpn_protocols = vec![b"echo".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).expect("TLS 1.3")));
    let runtime = default_runtime().expect("within tokio");
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime).expect("an endpoint");
    let server = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                    let got = receive.read_to_end(1 << 20).await.expect("the question");
                    send.write_all(&got).await.expect("the answer");
                    send.finish().expect("its end");
                }
            });
        }
    });
    (endpoint, roots)
}

/// Asks `server` by `name`, and waits for the answer.
async fn ask(socket: UdpSocket, roots: RootCertStore, server: SocketAddr, name: &str, version: u32) {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"echo".to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).expect("TLS 1.3")));
    config.version(version);
    let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).expect("an endpoint");
    let connection = endpoint.connect_with(config, server, name).expect("a name").await.expect("a connection");
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let question = vec![7; 100_000];
    send.write_all(&question).await.expect("the question");
    send.finish().expect("its end");
    assert!(receive.read_to_end(1 << 20).await.expect("the answer") == question);
    // kept, so that `sessions` still shows it
    std::mem::forget((connection, endpoint));
}

#[test]
fn a_quic_name_chooses_the_outbound() {
    let lab = Lab::new();
    let proxy = Socks::start(&lab.server, Family::V4.proxy(), 1080, Manners::default());
    let uci = Uci::new("direct").globals(&[("sniff_timeout", "10s")]).section(
        "config outbound 'proxy'\n\toption type 'socks5'\n\toption server '198.51.100.2'\n\toption port '1080'
config rule\n\tlist domain 'video.example'\n\toption outbound 'proxy'\n",
    );
    let daemon = Daemon::start(&lab, &uci);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _within = runtime.enter();
    let at = SocketAddr::new(Family::V4.destination(80), 443);
    let bind = |ns: &crate::ns::Namespace, at: SocketAddr| ns.within(|| UdpSocket::bind(at)).expect("bind");
    let (_server, roots) = serve(bind(&lab.server, at), &["www.video.example", "other.example"]);
    for (name, proxied) in [("www.video.example", true), ("other.example", false)] {
        let socket = bind(&lab.client, SocketAddr::new(Family::V4.client(), 0));
        let asking = ask(socket, roots.clone(), at, name, 1);
        runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time") });
        let associated = proxy.asked().iter().any(|asked| matches!(asked, Asked::Came(_)));
        assert_eq!(associated, proxied, "{name}");
        let sessions = daemon.command("sessions", &["--json"]);
        assert!(sessions.contains(&format!("\"domain\":\"{name}\"")), "{}", Json::parse(&sessions));
    }
}
