//! A JSON document as a tree, for those commands that show one to people.

use crate::proto::json::{Fault, Token, Tokens};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Null,
    Flag(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// Reads a whole document.
    pub(super) fn parse(text: &str) -> Result<Tree, Fault> {
        let mut tokens = Tokens::new(text.as_bytes());
        let first = tokens.next()?.ok_or(Fault::Truncated)?;
        let tree = value(first, &mut tokens)?;
        // says no to whatever comes behind it
        tokens.next()?;
        Ok(tree)
    }

    /// The member of that name; null if there is none.
    pub(super) fn get(&self, name: &str) -> &Tree {
        let Tree::Object(members) = self else { return &Tree::Null };
        members.iter().find(|(key, _)| key == name).map_or(&Tree::Null, |(_, value)| value)
    }

    /// The text of that member; empty if there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Tree::Text(text) => text,
            _ => "",
        }
    }

    /// The whole number of that member; 0 if there is none.
    pub(super) fn number(&self, name: &str) -> u64 {
        match self.get(name) {
            Tree::Number(digits) => digits.parse().unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether that member is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        *self.get(name) == Tree::Flag(true)
    }

    /// The elements of that member; none if it is no list.
    pub(super) fn list(&self, name: &str) -> &[Tree] {
        match self.get(name) {
            Tree::List(list) => list,
            _ => &[],
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.list(name).iter().filter_map(|element| match element {
            Tree::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The members of that member.
    pub(super) fn members(&self, name: &str) -> &[(String, Tree)] {
        match self.get(name) {
            Tree::Object(members) => members,
            _ => &[],
        }
    }
}

/// The value that begins with `token`. As deep as the reader lets brackets be.
fn value(token: Token<'_>, tokens: &mut Tokens<'_>) -> Result<Tree, Fault> {
    Ok(match token {
        Token::BeginObject => {
            let mut members = Vec::new();
            while let Token::Key(key) = next(tokens)? {
                let first = next(tokens)?;
                members.push((key.to_string(), value(first, tokens)?));
            }
            Tree::Object(members)
        }
        Token::BeginArray => {
            let mut elements = Vec::new();
            loop {
                match next(tokens)? {
                    Token::EndArray => break Tree::List(elements),
                    first => elements.push(value(first, tokens)?),
                }
            }
        }
        Token::Text(text) => Tree::Text(text.to_string()),
        Token::Number(digits) => Tree::Number(digits.to_owned()),
        Token::Flag(flag) => Tree::Flag(flag),
        // the reader gives an end or a key nowhere else
        Token::Null | Token::EndObject | Token::EndArray | Token::Key(_) => Tree::Null,
    })
}

fn next<'a>(tokens: &mut Tokens<'a>) -> Result<Token<'a>, Fault> {
    tokens.next()?.ok_or(Fault::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_by_its_members() {
        let tree =
            Tree::parse(r#"{"a":{"n":18446744073709551615,"t":"x\ty"},"l":["1",true,null,[]],"f":true}"#).unwrap();
        assert_eq!((tree.get("a").number("n"), tree.get("a").text("t")), (u64::MAX, "x\ty"));
        assert_eq!((tree.list("l").len(), tree.texts("l").collect::<Vec<_>>()), (4, vec!["1"]));
        assert!(tree.flag("f") && !tree.flag("a") && tree.members("a").len() == 2);
        assert_eq!((tree.get("no"), tree.number("no"), tree.text("no")), (&Tree::Null, 0, ""));
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for text in ["", "{", r#"{"a""#, "[1", "{} 1", "nul"] {
            assert!(Tree::parse(text).is_err(), "{text}");
        }
    }
}
