//! The part of a health check that is encrypted. A Shadowsocks server confirms nothing: that it knows our key and has reached
//! the target shows only when bytes of the target come back. So something is asked of it that whoever speaks HTTP answers;
//! TLS answers it by an alert, and SSH, SMTP and the like speak first.

use super::dial::{Ask, Failure};
use super::outbound::Way;
use crate::proto::shadowsocks::stream::{BEGIN_MAX, PROOF_MAX, Stream};
use crate::proto::shadowsocks::{KEY_MAX, Target};
use crate::stats::events::unix_time;
use crate::sys::{random, socket};
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;

/// Octets of the question, whatever the name.
const QUESTION_MAX: usize = 32 + 255;

/// Asks the target of `ask` for an answer, through the server of `way`; `None`: `way` is of another type.
///
/// # Errors
/// The server took nothing.
pub(super) fn begin(way: &Way, ask: &Ask<'_>, fd: BorrowedFd<'_>) -> Option<Result<Stream, Failure>> {
    let Way::Shadowsocks { key, .. } = way else { return None };
    let mut salt = [0; KEY_MAX];
    random::fill(&mut salt);
    let mut stream = Stream::new(*key, salt);
    Some(send_question(&mut stream, ask, fd).map(|()| stream).map_err(|e| Failure::Call("send", e)))
}

fn send_question(stream: &mut Stream, ask: &Ask<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut question = [0; QUESTION_MAX];
    let mut room = &mut question[..];
    write!(room, "HEAD / HTTP/1.0\r\nHost: {}\r\n\r\n", ask.name.unwrap_or("check"))?;
    let len = QUESTION_MAX - room.len();
    let mut out = [0; BEGIN_MAX + QUESTION_MAX];
    let target = Target { address: ask.target, name: ask.name };
    let len = stream.begin(target, &question[..len], unix_time(), 0, &mut out).ok_or(ErrorKind::InvalidInput)?;
    if socket::send(fd, &out[..len])? < len {
        return Err(ErrorKind::WouldBlock.into());
    }
    Ok(())
}

/// Whether an answer has come, and is authentic. What has come stays where it is: the connection is closed afterwards.
///
/// # Errors
/// It is not, or the connection has ended without one.
pub(super) fn has_answered(stream: &mut Stream, fd: BorrowedFd<'_>) -> Result<bool, Failure> {
    let mut answer = [0; PROOF_MAX];
    let answer = &mut answer[..stream.proof_len()];
    match socket::peek(fd, answer) {
        Ok(0) => Err(Failure::ClosedEarly("request")),
        Ok(n) if n < answer.len() => Ok(false),
        Ok(_) => match stream.open(answer, unix_time()) {
            Ok(_) => Ok(true),
            Err(refusal) => Err(Failure::NotAuthentic(refusal)),
        },
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Err(Failure::ClosedEarly("request")),
        Err(e) => Err(Failure::Call("read", e)),
    }
}
