//! The server: does what the first message of a connection asks for, and echoes datagrams.

use crate::wire::{BUFFER, MESSAGE, PACE, Stop, Stream, Table, Wish, watch};
use mio::{Events, Poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

const LISTENER: usize = 0;
const DATAGRAMS: usize = 1;
const FIRST: usize = 2;

struct Client {
    stream: TcpStream,
    message: [u8; MESSAGE],
    have: usize,
    work: Work,
}

enum Work {
    Asking,
    Taking(u64),
    Giving(Stream),
    Waiting,
}

impl Client {
    /// Goes on as far as the socket allows; `None` when it is over.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<Option<bool>> {
        let mut paced = false;
        loop {
            match &mut self.work {
                Work::Asking => match self.stream.read(&mut self.message[self.have..]) {
                    Ok(0) => return Ok(None),
                    Ok(n) => {
                        self.have += n;
                        if self.have == MESSAGE {
                            self.work = match Wish::read(&self.message) {
                                Some(Wish::Answer) => {
                                    self.stream.write_all(&self.message)?;
                                    Work::Waiting
                                }
                                Some(Wish::Upload(bytes)) => Work::Taking(bytes),
                                Some(Wish::Download(bytes, rate)) => Work::Giving(Stream::new(bytes, rate)),
                                None => return Ok(None),
                            };
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Some(paced)),
                    Err(e) => return Err(e),
                },
                Work::Giving(stream) => match stream.push(&mut self.stream, buffer)? {
                    Stop::Done => self.work = Work::Waiting,
                    Stop::Full => return Ok(Some(false)),
                    Stop::TooFast => {
                        paced = true;
                        return Ok(Some(paced));
                    }
                },
                Work::Taking(left) => match self.stream.read(buffer) {
                    Ok(0) => return Ok(None),
                    Ok(n) => {
                        *left = left.saturating_sub(n as u64);
                        if *left == 0 {
                            self.stream.write_all(&self.message)?;
                            self.work = Work::Waiting;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Some(false)),
                    Err(e) => return Err(e),
                },
                Work::Waiting => match self.stream.read(buffer) {
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Some(false)),
                    Err(e) => return Err(e),
                },
            }
        }
    }
}

/// Serves for ever.
pub(crate) fn serve(here: SocketAddr) -> io::Result<String> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let listener = TcpListener::bind(here)?;
    let datagrams = UdpSocket::bind(here)?;
    listener.set_nonblocking(true)?;
    datagrams.set_nonblocking(true)?;
    watch(&poll, &listener, LISTENER)?;
    watch(&poll, &datagrams, DATAGRAMS)?;
    let mut clients: Table<Client> = Table::new();
    let mut buffer = vec![0; BUFFER];
    let mut paced: Vec<usize> = Vec::new();
    loop {
        match poll.poll(&mut events, (!paced.is_empty()).then_some(PACE)) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        let mut due = std::mem::take(&mut paced);
        for event in &events {
            match event.token().0 {
                LISTENER => {
                    while let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        let place =
                            clients.insert(Client { stream, message: [0; MESSAGE], have: 0, work: Work::Asking });
                        if let Some(client) = clients.get(place) {
                            watch(&poll, &client.stream, place + FIRST)?;
                        }
                    }
                }
                DATAGRAMS => {
                    while let Ok((n, from)) = datagrams.recv_from(&mut buffer) {
                        // what does not go out is missed by the client, which says so
                        let _ = datagrams.send_to(&buffer[..n], from);
                    }
                }
                token if !due.contains(&(token - FIRST)) => due.push(token - FIRST),
                _ => {}
            }
        }
        for place in due {
            let Some(client) = clients.get(place) else { continue };
            match client.advance(&mut buffer) {
                Ok(Some(true)) => paced.push(place),
                Ok(Some(false)) => {}
                Ok(None) | Err(_) => drop(clients.remove(place)),
            }
        }
    }
}
