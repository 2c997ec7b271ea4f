//! What each method of Shadowsocks takes of the processor, without a network.

use std::time::Instant;

use tproxyd::proto::shadowsocks::stream::{CHUNK_MAX, Stream, sealed_len};
use tproxyd::proto::shadowsocks::{KEY_MAX, MasterKey, Method};

/// Octets sealed at a time, as the daemon does it.
const TEXT: usize = 3 * CHUNK_MAX;

/// A line for each method: octets, and the nanoseconds that it took to seal them. (To open them takes the same.)
pub(crate) fn sealed(times: usize) -> Result<String, String> {
    let (text, mut out) = (vec![7; TEXT], vec![0; sealed_len(TEXT)]);
    let mut lines = Vec::new();
    for (name, method) in Method::ALL {
        let password = match (method.is_2022(), method.key_len()) {
            (false, _) => "benchmark",
            (true, 16) => "AAECAwQFBgcICQoLDA0ODw==",
            (true, _) => "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        };
        let key = MasterKey::new(method, password).map_err(|e| e.to_string())?;
        let mut stream = Stream::new(key, [9; KEY_MAX]);
        let begin = Instant::now();
        for _ in 0..times {
            stream.seal(&text, &mut out).ok_or("it does not fit")?;
        }
        lines.push(format!("R 0 ciphers {name} units {} busy_ns {}", times * TEXT, begin.elapsed().as_nanos()));
    }
    Ok(lines.join("\n"))
}
