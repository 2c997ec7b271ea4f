//! JSON (RFC 8259): a writer into whatever takes text, and a reader that hands out one token after another.
//!
//! Neither allocates. The writer can be put down between two tokens and taken up again, so that a long document leaves
//! through a small buffer. The reader checks everything as it goes: grammar, UTF-8, escapes, depth.

mod reader;
mod writer;

pub use reader::{DEPTH_MAX, Fault, Text, Token, Tokens};
pub use writer::Writer;

#[cfg(test)]
mod tests;
