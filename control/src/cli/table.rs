//! Tables for people: columns as wide as they must be, nothing when there is nothing.

use std::io::{self, Write};

/// Prints rows under a heading.
///
/// # Errors
/// When standard output is closed.
pub fn print(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines(heading, rows) {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

fn lines(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .chain(heading.get(column).map(|cell| cell.len()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        text.trim_end().to_owned()
    };
    let rows = rows
        .iter()
        .map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(heading.to_vec()))
        .chain(rows)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["a".to_owned(), "x".to_owned()],
            vec!["longer".to_owned(), String::new()],
        ];
        let expected = ["NAME    B", "a       x", "longer"];
        assert_eq!(lines(&["NAME", "B"], &rows), expected);
        assert_eq!(lines(&["NAME"], &[]), ["NAME"]);
    }
}
