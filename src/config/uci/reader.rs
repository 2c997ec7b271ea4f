//! Bytes → words of commands: quotes, escapes, comments, joined lines.

/// Line and message of what is wrong with a command.
pub(super) type Wrong = (u32, String);

/// A place in the file, and its line.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) line: u32,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, line: 1 }
    }

    /// Passes `count` bytes.
    pub(super) fn pass(&mut self, count: usize) {
        (0..count).for_each(|_| self.bump());
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn bump(&mut self) {
        if self.peek() == Some(b'\n') {
            self.line += 1;
        }
        self.at += 1;
    }

    /// Goes to the next command; false at the end of the file.
    pub(super) fn next_command(&mut self) -> bool {
        loop {
            match self.peek() {
                None => return false,
                Some(b'#') => self.skip_line(),
                Some(b'\n' | b';') => self.bump(),
                Some(c) if is_blank(c) => self.bump(),
                Some(_) => return true,
            }
        }
    }

    /// Past the end of this line.
    fn skip_line(&mut self) {
        while let Some(c) = self.peek() {
            self.bump();
            if c == b'\n' {
                return;
            }
        }
    }

    /// Past blanks and joined lines, but not past the end of the line.
    fn skip_blanks(&mut self) {
        while let Some(c) = self.peek() {
            if is_blank(c) {
                self.bump();
            } else if c != b'\\' || !self.join_line() {
                return;
            }
        }
    }

    /// At a backslash: passes it and the end of the line after it, if that is what follows.
    fn join_line(&mut self) -> bool {
        let length = match self.bytes.get(self.at + 1..).unwrap_or_default() {
            [] => 1,
            [b'\n', ..] => 2,
            [b'\r', b'\n', ..] => 3,
            _ => return false,
        };
        self.pass(length);
        true
    }

    pub(super) fn keyword(&mut self) -> String {
        let from = self.at;
        while self.peek().is_some_and(|c| !is_blank(c) && c != b'\n' && c != b';') {
            self.bump();
        }
        String::from_utf8_lossy(self.bytes.get(from..self.at).unwrap_or_default()).into_owned()
    }

    /// The next word of this command. With `foreign`, quotes may go on over lines, and nothing is kept but what the
    /// grammar needs.
    pub(super) fn word(&mut self, foreign: bool) -> Result<Option<Vec<u8>>, Wrong> {
        self.skip_blanks();
        if matches!(self.peek(), None | Some(b'\n' | b';' | b'#')) {
            return Ok(None);
        }
        let mut word = Vec::new();
        let mut quote: Option<(u8, u32)> = None;
        loop {
            let Some(c) = self.peek() else {
                return match quote {
                    Some((quote, line)) => Err((line, unclosed(quote))),
                    None => Ok(Some(word)),
                };
            };
            match (c, quote) {
                (b'\n', Some((quote, line))) if !foreign => return Err((line, unclosed(quote))),
                (b'\n' | b';' | b'#', None) => return Ok(Some(word)),
                (c, None) if is_blank(c) => return Ok(Some(word)),
                (b'\'' | b'"', None) => quote = Some((c, self.line)),
                (c, Some((open, _))) if c == open => quote = None,
                (b'\\', None | Some((b'"', _))) => {
                    if self.join_line() {
                        continue;
                    }
                    self.bump();
                    word.extend(self.peek());
                }
                _ => word.push(c),
            }
            self.bump();
            if word.len() > LONGEST_WORD {
                return Err((self.line, format!("a value longer than {LONGEST_WORD} bytes")));
            }
        }
    }

    /// Up to the end of the command, which is left for [`Self::next_command`]; the word that is in the way otherwise.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.skip_blanks();
        if matches!(self.peek(), None | Some(b'\n' | b';' | b'#')) { Ok(()) } else { Err(self.keyword()) }
    }

    /// After a mistake: to the end of the line, or of the command if that was read already.
    pub(super) fn skip_command(&mut self) {
        if !matches!(self.peek(), Some(b'\n' | b';')) {
            self.skip_line();
        }
    }
}

fn unclosed(quote: u8) -> String {
    format!("the quote {} is not closed on this line", char::from(quote))
}

/// isspace(3) in the C locale, but for the end of the line.
fn is_blank(c: u8) -> bool {
    matches!(c, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// Bytes of one word, quotes taken off.
const LONGEST_WORD: usize = 65_536;
