//! A fixed number of pipes for bulk directions, opened when first needed and kept.

use crate::sys::splice::Pipe;

/// Bytes that a pipe is asked to take: two reads' worth, since each piece of a packet fills a whole page of it.
pub const PIPE: usize = 128 * 1024;

/// Pipes by number, so that a limit holds, not by descriptor.
#[derive(Debug)]
pub struct Pipes {
    idle: Vec<Pipe>,
    lent: usize,
    most: usize,
    /// This kernel refused a splice between sockets.
    refused: bool,
}

impl Pipes {
    /// At most `most` pipes at one time.
    pub fn new(most: usize) -> Pipes {
        Pipes { idle: Vec::with_capacity(most), lent: 0, most, refused: false }
    }

    /// Descriptors that all pipes take.
    pub fn descriptors(most: usize) -> u64 {
        2 * most as u64
    }

    /// How many suit `relay_memory` bytes: those in pipes count as in flight, too.
    pub fn suiting(relay_memory: u64) -> usize {
        (relay_memory / 4 / PIPE as u64).clamp(2, 64) as usize
    }

    /// Lends an empty pipe; `None` if all are lent or none can be opened: then bytes are copied.
    pub fn take(&mut self) -> Option<Pipe> {
        if self.refused {
            return None;
        }
        let pipe = match self.idle.pop() {
            Some(pipe) => pipe,
            None if self.lent < self.most => Pipe::open(PIPE).ok()?,
            None => return None,
        };
        self.lent += 1;
        Some(pipe)
    }

    /// Takes a pipe back; one that still holds bytes is closed, lest they reach a stranger.
    pub fn give_back(&mut self, pipe: Pipe, holds_bytes: bool) {
        self.lent -= 1;
        if !holds_bytes {
            self.idle.push(pipe);
        }
    }

    /// The kernel can't splice: no pipe is lent from now on.
    pub fn refuse(&mut self) {
        if !self.refused {
            log::warn!("this kernel does not splice between sockets; bytes are copied instead");
        }
        self.refused = true;
    }

    /// Pipes lent now.
    pub fn lent(&self) -> usize {
        self.lent
    }

    /// Most pipes.
    pub fn capacity(&self) -> usize {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lent_means_none_until_one_comes_back() {
        let mut pipes = Pipes::new(2);
        let (first, second) = (pipes.take().unwrap(), pipes.take().unwrap());
        assert!(pipes.take().is_none());
        pipes.give_back(first, false);
        pipes.give_back(second, true);
        assert_eq!((pipes.lent(), pipes.idle.len()), (0, 1));
        assert!(pipes.take().is_some() && pipes.take().is_some());
    }

    #[test]
    fn a_kernel_that_refuses_is_not_asked_again() {
        let mut pipes = Pipes::new(2);
        pipes.refuse();
        assert!(pipes.take().is_none());
    }
}
