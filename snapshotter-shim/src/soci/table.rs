//! Tables as Go's tab writer makes them: cells of at least 8, four blanks behind the widest, also
//! behind the last.

/// The lines of a table.
pub(super) fn lines<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        (widest + PADDING).max(WIDTH_MIN)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect()
    };
    rows.iter().map(line).collect()
}

const PADDING: usize = 4;
const WIDTH_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_as_wide_as_the_widest() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        assert_eq!(lines(&[row(["A", "SIZE", "Ö"])]), ["A       SIZE    Ö       "]);
        assert_eq!(
            lines(&[row(["A", "B", "C"]), row(["aaaaa", "", "cccc"])]),
            ["A        B       C       ", "aaaaa            cccc    "]
        );
    }
}
