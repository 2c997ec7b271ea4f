//! Hands out one token after another, all of it checked.

use std::fmt::{self, Display, Write};

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// `{`
    BeginObject,
    /// `}`
    EndObject,
    /// `[`
    BeginArray,
    /// `]`
    EndArray,
    /// The name of a member.
    Key(Text<'a>),
    /// A string.
    Text(Text<'a>),
    /// A number as it is written.
    Number(&'a str),
    /// `true` or `false`.
    Flag(bool),
    /// `null`
    Null,
}

/// A string as it is written, known to be well-formed.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    /// Its characters, escapes undone.
    pub fn chars(self) -> impl Iterator<Item = char> + use<'a> {
        let mut rest = self.0.chars();
        std::iter::from_fn(move || match rest.next()? {
            '\\' => unescape(&mut rest),
            plain => Some(plain),
        })
    }

    /// True if it says `text`.
    pub fn is(self, text: &str) -> bool {
        self.chars().eq(text.chars())
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.chars().eq(other.chars())
    }
}

impl Eq for Text<'_> {}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chars().try_for_each(|c| f.write_char(c))
    }
}

/// The character that an escape stands for, without its backslash; `None` if it stands for none.
fn unescape(rest: &mut std::str::Chars<'_>) -> Option<char> {
    Some(match rest.next()? {
        c @ ('"' | '\\' | '/') => c,
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let first = four_hex_digits(rest)?;
            // RFC 8259 section 7: what is beyond the basic plane comes as two surrogates
            if !(0xd800..0xdc00).contains(&first) {
                return char::from_u32(first);
            }
            (rest.next()? == '\\' && rest.next()? == 'u').then_some(())?;
            let second = four_hex_digits(rest).filter(|second| (0xdc00..0xe000).contains(second))?;
            char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))?
        }
        _ => return None,
    })
}

fn four_hex_digits(rest: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |number, _| Some(number << 4 | rest.next()?.to_digit(16)?))
}

/// Why bytes are no JSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They end before the document does.
    Truncated,
    /// What stands at this offset cannot stand there.
    Unexpected {
        /// From the start, in bytes.
        at: usize,
    },
    /// More than [`DEPTH_MAX`] brackets are open at this offset.
    TooDeep {
        /// From the start, in bytes.
        at: usize,
    },
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Truncated => f.write_str("it ends too early"),
            Fault::Unexpected { at } => write!(f, "byte {at} cannot stand there"),
            Fault::TooDeep { at } => write!(f, "byte {at} opens more than {DEPTH_MAX} brackets"),
        }
    }
}

/// Most brackets that may be open at once.
pub const DEPTH_MAX: u32 = 32;

/// Reads a document token by token.
#[derive(Debug, Clone)]
pub struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
    /// One bit for each open bracket, the innermost lowest: 1 for an object.
    open: u32,
    depth: u32,
    expected: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    /// Right behind `[`.
    ValueOrEnd,
    /// Right behind `{`.
    KeyOrEnd,
    Key,
    /// A value has ended inside of brackets.
    CommaOrEnd,
    /// The document is complete.
    Nothing,
}

impl<'a> Tokens<'a> {
    /// A reader of one document, which must be all of `bytes` but for blanks.
    pub fn new(bytes: &'a [u8]) -> Tokens<'a> {
        Tokens { bytes, at: 0, open: 0, depth: 0, expected: Expected::Value }
    }

    /// The next token; `None` behind the end of the document.
    ///
    /// # Errors
    /// Why this is no document. The reader must not be used any more.
    #[allow(clippy::should_implement_trait, reason = "an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Token<'a>>, Fault> {
        self.skip_blanks();
        if self.expected == Expected::CommaOrEnd {
            if self.peek()? == b',' {
                self.at += 1;
                self.expected = if self.in_object() { Expected::Key } else { Expected::Value };
                self.skip_blanks();
            } else {
                return self.end().map(Some);
            }
        }
        match self.expected {
            Expected::Nothing if self.at == self.bytes.len() => Ok(None),
            Expected::Nothing | Expected::CommaOrEnd => Err(self.unexpected()),
            Expected::KeyOrEnd if self.peek()? == b'}' => self.end().map(Some),
            Expected::ValueOrEnd if self.peek()? == b']' => self.end().map(Some),
            Expected::Key | Expected::KeyOrEnd => {
                let key = self.text()?;
                self.skip_blanks();
                self.literal(":")?;
                self.expected = Expected::Value;
                Ok(Some(Token::Key(key)))
            }
            Expected::Value | Expected::ValueOrEnd => self.value().map(Some),
        }
    }

    fn value(&mut self) -> Result<Token<'a>, Fault> {
        let token = match self.peek()? {
            b'{' => return self.begin(1, Expected::KeyOrEnd, Token::BeginObject),
            b'[' => return self.begin(0, Expected::ValueOrEnd, Token::BeginArray),
            b'"' => Token::Text(self.text()?),
            b't' => self.literal("true").map(|()| Token::Flag(true))?,
            b'f' => self.literal("false").map(|()| Token::Flag(false))?,
            b'n' => self.literal("null").map(|()| Token::Null)?,
            _ => Token::Number(self.number()?),
        };
        self.value_ended();
        Ok(token)
    }

    fn begin(&mut self, bit: u32, expected: Expected, token: Token<'a>) -> Result<Token<'a>, Fault> {
        if self.depth == DEPTH_MAX {
            return Err(Fault::TooDeep { at: self.at });
        }
        self.at += 1;
        self.depth += 1;
        self.open = self.open << 1 | bit;
        self.expected = expected;
        Ok(token)
    }

    fn end(&mut self) -> Result<Token<'a>, Fault> {
        let (bracket, token) = if self.in_object() { (b'}', Token::EndObject) } else { (b']', Token::EndArray) };
        if self.peek()? != bracket {
            return Err(self.unexpected());
        }
        self.at += 1;
        self.depth -= 1;
        self.open >>= 1;
        self.value_ended();
        Ok(token)
    }

    fn value_ended(&mut self) {
        self.expected = if self.depth == 0 { Expected::Nothing } else { Expected::CommaOrEnd };
    }

    fn in_object(&self) -> bool {
        self.open & 1 == 1
    }

    fn text(&mut self) -> Result<Text<'a>, Fault> {
        self.literal("\"")?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => break,
                // whatever is escaped, a quote or a backslash among it, is looked at below
                b'\\' => self.at += 2,
                0..=0x1f => return Err(self.unexpected()),
                _ => self.at += 1,
            }
        }
        let raw = self.bytes.get(start..self.at).ok_or(Fault::Truncated)?;
        let text = std::str::from_utf8(raw).map_err(|e| Fault::Unexpected { at: start + e.valid_up_to() })?;
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            let at = start + text.len() - rest.as_str().len() - 1;
            if c == '\\' && unescape(&mut rest).is_none() {
                return Err(Fault::Unexpected { at });
            }
        }
        self.at += 1;
        Ok(Text(text))
    }

    fn number(&mut self) -> Result<&'a str, Fault> {
        let start = self.at;
        self.pass(|c| c == b'-', 1);
        if self.peek()? == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.pass(|c| c == b'.', 1) {
            self.digits()?;
        }
        if self.pass(|c| c == b'e' || c == b'E', 1) {
            self.pass(|c| c == b'+' || c == b'-', 1);
            self.digits()?;
        }
        let raw = self.bytes.get(start..self.at).unwrap_or_default();
        std::str::from_utf8(raw).map_err(|_| Fault::Unexpected { at: start })
    }

    fn digits(&mut self) -> Result<(), Fault> {
        if !self.peek()?.is_ascii_digit() {
            return Err(self.unexpected());
        }
        self.pass(|c| c.is_ascii_digit(), usize::MAX);
        Ok(())
    }

    /// Passes over at most `most` bytes like that; true if there was one.
    fn pass(&mut self, like: impl Fn(u8) -> bool, most: usize) -> bool {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let count = rest.iter().take(most).take_while(|c| like(**c)).count();
        self.at += count;
        count > 0
    }

    fn literal(&mut self, text: &str) -> Result<(), Fault> {
        for expected in text.bytes() {
            if self.peek()? != expected {
                return Err(self.unexpected());
            }
            self.at += 1;
        }
        Ok(())
    }

    fn skip_blanks(&mut self) {
        self.pass(|c| matches!(c, b' ' | b'\t' | b'\n' | b'\r'), usize::MAX);
    }

    fn peek(&self) -> Result<u8, Fault> {
        self.bytes.get(self.at).copied().ok_or(Fault::Truncated)
    }

    fn unexpected(&self) -> Fault {
        Fault::Unexpected { at: self.at }
    }
}
