//! Just enough of JSON (RFC 8259) to read what `--json` prints.

use std::collections::BTreeMap;
use std::fmt;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    /// Reads a whole text; panics with the place if it is not JSON.
    pub fn parse(text: &str) -> Json {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value();
        reader.blanks();
        assert_eq!(reader.at, text.len(), "more after the end of the JSON value in {text}");
        value
    }

    /// The value at a path such as `tcp.active` or `outbounds.0.name`.
    pub fn at(&self, path: &str) -> &Json {
        path.split('.').fold(self, |value, key| {
            let next = match value {
                Json::Map(map) => map.get(key),
                Json::List(list) => key.parse::<usize>().ok().and_then(|n| list.get(n)),
                _ => None,
            };
            next.unwrap_or_else(|| panic!("no '{path}' in {self}"))
        })
    }

    /// The whole number at a path.
    pub fn number(&self, path: &str) -> u64 {
        match self.at(path) {
            Json::Number(n) if *n >= 0.0 && n.fract() == 0.0 => *n as u64,
            other => panic!("'{path}' is not a whole number: {other}"),
        }
    }

    /// The text at a path.
    pub fn text(&self, path: &str) -> &str {
        match self.at(path) {
            Json::Text(text) => text,
            other => panic!("'{path}' is not a text: {other}"),
        }
    }

    /// The list at a path.
    pub fn list(&self, path: &str) -> &[Json] {
        match self.at(path) {
            Json::List(list) => list,
            other => panic!("'{path}' is not a list: {other}"),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(value) => write!(f, "{value}"),
            Json::Text(value) => write!(f, "{value:?}"),
            Json::List(list) => {
                f.write_str("[")?;
                for (n, value) in list.iter().enumerate() {
                    write!(f, "{}{value}", if n > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Json::Map(map) => {
                f.write_str("{")?;
                for (n, (key, value)) in map.iter().enumerate() {
                    write!(f, "{}{key:?}:{value}", if n > 0 { "," } else { "" })?;
                }
                f.write_str("}")
            }
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> char {
        self.blanks();
        self.text[self.at..].chars().next().unwrap_or_else(|| self.wrong("the end"))
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.text[self.at..].starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn wrong(&self, what: &str) -> ! {
        panic!("{what} at octet {} is not JSON: {}", self.at, self.text)
    }

    fn value(&mut self) -> Json {
        match self.peek() {
            '{' => Json::Map(self.members('}', |reader| {
                reader.blanks();
                let key = reader.string();
                if reader.peek() != ':' {
                    reader.wrong("a key without ':'");
                }
                reader.at += 1;
                (key, reader.value())
            })),
            '[' => Json::List(self.members(']', Reader::value)),
            '"' => Json::Text(self.string()),
            _ if self.take("true") => Json::Bool(true),
            _ if self.take("false") => Json::Bool(false),
            _ if self.take("null") => Json::Null,
            _ => {
                let rest = &self.text[self.at..];
                let len = rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'));
                let number = &rest[..len.unwrap_or(rest.len())];
                let value = number.parse().unwrap_or_else(|_| self.wrong("a value"));
                self.at += number.len();
                Json::Number(value)
            }
        }
    }

    /// What stands between an opening bracket, commas, and `close`.
    fn members<T, C: FromIterator<T>>(&mut self, close: char, mut member: impl FnMut(&mut Self) -> T) -> C {
        let mut members = Vec::new();
        self.at += 1;
        if self.peek() == close {
            self.at += 1;
            return members.into_iter().collect();
        }
        loop {
            members.push(member(self));
            let next = self.peek();
            self.at += 1;
            match next {
                ',' => (),
                end if end == close => return members.into_iter().collect(),
                _ => self.wrong("something between members"),
            }
        }
    }

    fn string(&mut self) -> String {
        if !self.take("\"") {
            self.wrong("not a string");
        }
        let mut value = String::new();
        loop {
            let Some(c) = self.text[self.at..].chars().next() else { self.wrong("a string without end") };
            self.at += c.len_utf8();
            match c {
                '"' => return value,
                '\\' => value.push(self.escape()),
                c if c < ' ' => self.wrong("a bare control character"),
                c => value.push(c),
            }
        }
    }

    fn escape(&mut self) -> char {
        let Some(c) = self.text[self.at..].chars().next() else { self.wrong("a string without end") };
        self.at += c.len_utf8();
        match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '"' | '\\' | '/' => c,
            'u' => {
                let hex = self.text.get(self.at..self.at + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                self.at += 4;
                hex.and_then(char::from_u32).unwrap_or_else(|| self.wrong("a bad \\u"))
            }
            _ => self.wrong("an unknown escape"),
        }
    }
}

#[test]
fn a_status_is_read_with_its_numbers_texts_and_lists() {
    let status = Json::parse(r#" {"tcp":{"active":3,"x":[]},"outbounds":[{"name":"a\"\u00e9"}],"up":true,"l":null} "#);
    assert_eq!(status.number("tcp.active"), 3);
    assert_eq!(status.text("outbounds.0.name"), "a\"é");
    assert_eq!(status.list("tcp.x"), []);
}
