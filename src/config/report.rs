//! What is wrong or odd in a configuration, each with its place; all of a file at once. And the nearest known name.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the user named it; a list file of a set has its own name here.
    pub file: String,
    /// Line in `file` from 1; 0 is the file as a whole.
    pub line: u32,
    /// What is wrong, what was expected, and what is nearest to it.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Everything that is wrong in a configuration, ordered by line. Displays as one `FILE:LINE: message` per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    problems: Vec<Problem>,
    left_off: usize,
}

impl Errors {
    /// A configuration that could not be read at all.
    pub(super) fn whole_file(file: &str, message: impl Into<String>) -> Self {
        Errors { problems: vec![Problem { file: file.to_owned(), line: 0, message: message.into() }], left_off: 0 }
    }

    /// The errors, by line; at most [`MOST_KEPT`].
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// How many there are, those not kept included. Never 0.
    pub fn count(&self) -> usize {
        self.problems.len() + self.left_off
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        match self.left_off {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Errors {}

/// Errors and warnings kept; a file of garbage must not fill a small router's memory with messages about it.
pub const MOST_KEPT: usize = 500;

/// Collects while a file is read. `at` is always the line of the main file that the problem comes from.
pub(super) struct Report<'f> {
    file: &'f str,
    errors: Vec<(u32, Problem)>,
    warnings: Vec<(u32, Problem)>,
    left_off: usize,
}

impl<'f> Report<'f> {
    pub(super) fn new(file: &'f str) -> Self {
        Report { file, errors: Vec::new(), warnings: Vec::new(), left_off: 0 }
    }

    pub(super) fn error(&mut self, at: u32, message: impl Into<String>) {
        self.error_in(at, self.file, at, message);
    }

    /// An error in another file that line `at` of the main file refers to.
    pub(super) fn error_in(&mut self, at: u32, file: &str, line: u32, message: impl Into<String>) {
        if self.errors.len() < MOST_KEPT {
            self.errors.push((at, Problem { file: file.to_owned(), line, message: message.into() }));
        } else {
            self.left_off += 1;
        }
    }

    pub(super) fn warn(&mut self, at: u32, message: impl Into<String>) {
        self.warn_in(at, self.file, at, message);
    }

    /// A warning about another file that line `at` of the main file refers to.
    pub(super) fn warn_in(&mut self, at: u32, file: &str, line: u32, message: impl Into<String>) {
        if self.warnings.len() < MOST_KEPT {
            self.warnings.push((at, Problem { file: file.to_owned(), line, message: message.into() }));
        }
    }

    /// The warnings by line, or the errors by line.
    pub(super) fn finish(mut self) -> Result<Vec<String>, Errors> {
        if self.errors.is_empty() {
            self.warnings.sort_by_key(|(at, _)| *at);
            return Ok(self.warnings.iter().map(|(_, problem)| problem.to_string()).collect());
        }
        self.errors.sort_by_key(|(at, _)| *at);
        Err(Errors { problems: self.errors.into_iter().map(|(_, problem)| problem).collect(), left_off: self.left_off })
    }
}

/// The known name that a typing slip most likely meant: at most one slip for every three letters, one at least.
pub(super) fn nearest<'n>(word: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    if word.len() > LONGEST_COMPARED {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .take(MOST_COMPARED)
        .filter(|name| name.len() <= LONGEST_COMPARED)
        .map(|name| (distance(&word, name), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(from != to)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *from == b[j - 1] && a[i - 1] == *to {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

/// Names longer than this get no suggestion, so that the comparison stays cheap.
const LONGEST_COMPARED: usize = 64;

/// And no more names than this are compared.
const MOST_COMPARED: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_of_neighbours_is_one_slip() {
        assert_eq!(distance("prot", "port"), 1);
        assert_eq!(distance("listner", "listener"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn a_word_far_from_every_name_has_no_nearest() {
        let known = ["port", "proto", "device"];
        assert_eq!(nearest("prot", known), Some("port"));
        assert_eq!(nearest("devices", known), Some("device"));
        assert_eq!(nearest("xyzzy", known), None);
        assert_eq!(nearest(&"p".repeat(10_000), known), None);
    }

    #[test]
    fn problems_come_out_by_line_and_the_rest_is_counted() {
        let mut report = Report::new("f");
        for line in (1..=MOST_KEPT as u32 + 2).rev() {
            report.error(line, "x");
        }
        let errors = report.finish().unwrap_err();
        assert_eq!(errors.count(), MOST_KEPT + 2);
        assert!(errors.to_string().starts_with("f:3: x\nf:4: x\n"));
        assert!(errors.to_string().ends_with("\nand 2 more"));
    }
}
