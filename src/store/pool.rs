//! Buffers of one size and fixed number, for bytes that the other side did not take at once.

/// Bytes in one buffer.
pub const CHUNK: usize = 65_536;

/// A buffer out of a [`Pool`], with the part of it that is filled. To be given back by [`Pool::give_back`].
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    index: u16,
    /// Where the next byte to send stands.
    start: u32,
    /// How many are left to send.
    len: u32,
}

impl Chunk {
    /// How many bytes wait in it.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True if nothing waits in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Marks `n` bytes as sent.
    pub fn advance(&mut self, n: usize) {
        let n = (n as u32).min(self.len);
        self.start += n;
        self.len -= n;
    }
}

/// A fixed number of buffers. All address space is reserved at the start; pages are touched as buffers are filled, and the
/// one given back last is taken first.
pub struct Pool {
    area: Vec<u8>,
    free: Vec<u16>,
    chunks: u16,
    lowest_free: u16,
}

impl Pool {
    /// How many buffers [`Self::new`] makes of `bytes`.
    pub fn capacity_for(bytes: u64) -> u16 {
        (bytes / CHUNK as u64).clamp(1, u64::from(u16::MAX)) as u16
    }

    /// As many buffers as fit into `bytes`, at least one and at most 65,535.
    pub fn new(bytes: u64) -> Pool {
        let chunks = Pool::capacity_for(bytes);
        Pool {
            area: vec![0; usize::from(chunks) * CHUNK],
            free: (0..chunks).rev().collect(),
            chunks,
            lowest_free: chunks,
        }
    }

    /// Bytes that a pool of `capacity` buffers takes once all of them were lent.
    pub const fn memory_max(capacity: usize) -> usize {
        capacity * (CHUNK + size_of::<u16>())
    }

    /// How many buffers there are.
    pub fn capacity(&self) -> usize {
        usize::from(self.chunks)
    }

    /// How many are lent.
    pub fn lent(&self) -> usize {
        self.capacity() - self.free.len()
    }

    /// Most that were ever lent at once.
    pub fn peak(&self) -> usize {
        usize::from(self.chunks - self.lowest_free)
    }

    /// The memory of the buffers, if none is lent: what is in it matters to nobody then.
    pub fn trim(&mut self) -> Option<&mut [u8]> {
        (self.lent() == 0 && self.peak() > 0).then_some(&mut self.area)
    }

    /// True if [`Self::take`] has nothing to give.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Lends a buffer that holds `bytes`, at most [`CHUNK`] of them; `None` if all are lent or `bytes` does not fit.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Chunk> {
        if bytes.len() > CHUNK {
            return None;
        }
        let index = self.free.pop()?;
        self.lowest_free = self.lowest_free.min(self.free.len() as u16);
        self.area[usize::from(index) * CHUNK..][..bytes.len()].copy_from_slice(bytes);
        Some(Chunk { index, start: 0, len: bytes.len() as u32 })
    }

    /// Adds all `parts` behind what `chunk` holds; false, and nothing added, if they don't fit.
    pub fn append_all(&mut self, chunk: &mut Chunk, parts: &[&[u8]]) -> bool {
        let end = (chunk.start + chunk.len) as usize;
        if parts.iter().map(|part| part.len()).sum::<usize>() > CHUNK - end {
            return false;
        }
        for part in parts {
            let end = (chunk.start + chunk.len) as usize;
            self.area[usize::from(chunk.index) * CHUNK + end..][..part.len()].copy_from_slice(part);
            chunk.len += part.len() as u32;
        }
        true
    }

    /// The bytes that wait in `chunk`.
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        &self.area[usize::from(chunk.index) * CHUNK + chunk.start as usize..][..chunk.len as usize]
    }

    /// Takes a buffer back.
    pub fn give_back(&mut self, chunk: Chunk) {
        debug_assert!(!self.free.contains(&chunk.index), "a buffer is given back once");
        self.free.push(chunk.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_pool_answers_and_recovers() {
        let mut pool = Pool::new(2 * CHUNK as u64 + 5);
        assert_eq!(pool.capacity(), 2);
        let (a, b) = (pool.take(b"a").unwrap(), pool.take(b"b").unwrap());
        assert!(pool.is_empty() && pool.take(b"c").is_none());
        pool.give_back(a);
        assert_eq!((pool.lent(), pool.peak()), (1, 2));
        assert!(pool.take(b"c").is_some());
        assert_eq!(pool.bytes(&b), b"b");
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let mut pool = Pool::new(0);
        let mut chunk = pool.take(b"hello ").unwrap();
        assert!(pool.append_all(&mut chunk, &[b"wor", b"ld"]));
        chunk.advance(4);
        assert_eq!(pool.bytes(&chunk), b"o world");
        chunk.advance(100);
        assert!(chunk.is_empty());
        assert!(pool.append_all(&mut chunk, &[&vec![7; CHUNK - 11]]));
        assert!(!pool.append_all(&mut chunk, &[b"", b"x"]), "the end is reached");
        assert_eq!(chunk.len(), CHUNK - 11);
    }

    #[test]
    fn more_than_a_buffer_holds_is_refused() {
        let mut pool = Pool::new(0);
        assert!(pool.take(&vec![0; CHUNK + 1]).is_none());
        assert_eq!(pool.lent(), 0);
    }
}
