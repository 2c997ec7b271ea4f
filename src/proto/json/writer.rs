//! Writes tokens, with commas and escapes.

use std::fmt::{self, Display, Write};

/// Writes tokens with their commas. The caller sees to it that what was begun is ended.
pub struct Writer<'w> {
    out: &'w mut dyn Write,
    comma: bool,
}

impl<'w> Writer<'w> {
    /// Begins a document.
    pub fn new(out: &'w mut dyn Write) -> Writer<'w> {
        Writer::resume(out, false)
    }

    /// Goes on where another writer stopped that said `comma` in [`Self::needs_comma`].
    pub fn resume(out: &'w mut dyn Write, comma: bool) -> Writer<'w> {
        Writer { out, comma }
    }

    /// True if a comma has to come before the next value.
    pub fn needs_comma(&self) -> bool {
        self.comma
    }

    /// `{`
    ///
    /// # Errors
    /// Here and below: what the text is written to is full.
    pub fn begin_object(&mut self) -> fmt::Result {
        self.begin('{')
    }

    /// `}`
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn end_object(&mut self) -> fmt::Result {
        self.end('}')
    }

    /// `[`
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn begin_array(&mut self) -> fmt::Result {
        self.begin('[')
    }

    /// `]`
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn end_array(&mut self) -> fmt::Result {
        self.end(']')
    }

    /// `]` at the beginning of a line of its own.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn end_array_on_new_line(&mut self) -> fmt::Result {
        self.out.write_char('\n')?;
        self.end_array()
    }

    /// The name of the member whose value follows.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn key(&mut self, name: &str) -> fmt::Result {
        self.text(name)?;
        self.comma = false;
        self.out.write_char(':')
    }

    /// A string: whatever `text` displays as.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn text(&mut self, text: impl Display) -> fmt::Result {
        self.separate()?;
        self.out.write_char('"')?;
        write!(Escaped(self.out), "{text}")?;
        self.out.write_char('"')
    }

    /// A whole number.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn number(&mut self, number: u64) -> fmt::Result {
        self.separate()?;
        write!(self.out, "{number}")
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn flag(&mut self, flag: bool) -> fmt::Result {
        self.separate()?;
        write!(self.out, "{flag}")
    }

    /// `null`
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn null(&mut self) -> fmt::Result {
        self.separate()?;
        self.out.write_str("null")
    }

    /// A line break before the next value, with the comma that it needs in front, so that a reader may go by lines.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn new_line(&mut self) -> fmt::Result {
        self.separate()?;
        self.comma = false;
        self.out.write_char('\n')
    }

    /// A member that is a string.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn text_member(&mut self, name: &str, text: impl Display) -> fmt::Result {
        self.key(name)?;
        self.text(text)
    }

    /// A member that is a whole number.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn number_member(&mut self, name: &str, number: u64) -> fmt::Result {
        self.key(name)?;
        self.number(number)
    }

    /// A member that is true or false.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn flag_member(&mut self, name: &str, flag: bool) -> fmt::Result {
        self.key(name)?;
        self.flag(flag)
    }

    /// A member that is a string, or null for `None`.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn optional_text_member(&mut self, name: &str, text: Option<impl Display>) -> fmt::Result {
        self.key(name)?;
        match text {
            Some(text) => self.text(text),
            None => self.null(),
        }
    }

    /// A member that is a whole number, or null for `None`.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn optional_number_member(&mut self, name: &str, number: Option<u64>) -> fmt::Result {
        self.key(name)?;
        match number {
            Some(number) => self.number(number),
            None => self.null(),
        }
    }

    /// A member that is true or false, or null for `None`.
    ///
    /// # Errors
    /// See [`Self::begin_object`].
    pub fn optional_flag_member(&mut self, name: &str, flag: Option<bool>) -> fmt::Result {
        self.key(name)?;
        match flag {
            Some(flag) => self.flag(flag),
            None => self.null(),
        }
    }

    fn begin(&mut self, bracket: char) -> fmt::Result {
        self.separate()?;
        self.comma = false;
        self.out.write_char(bracket)
    }

    fn end(&mut self, bracket: char) -> fmt::Result {
        self.comma = true;
        self.out.write_char(bracket)
    }

    fn separate(&mut self) -> fmt::Result {
        if std::mem::replace(&mut self.comma, true) { self.out.write_char(',') } else { Ok(()) }
    }
}

/// Escapes what RFC 8259 section 7 says must be, and DEL, which terminals act on.
struct Escaped<'w>(&'w mut dyn Write);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c.is_ascii_control()) {
            let (plain, special) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut chars = special.chars();
            match chars.next() {
                Some(c @ ('"' | '\\')) => write!(self.0, "\\{c}")?,
                Some('\n') => self.0.write_str("\\n")?,
                Some('\t') => self.0.write_str("\\t")?,
                Some(c) => write!(self.0, "\\u{:04x}", u32::from(c))?,
                None => {}
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}
