//! Formats rows as text in columns.

/// A table whose columns are as wide as their widest cell and two spaces apart, with a line under the head.
#[must_use]
pub fn render<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        std::iter::once(head).chain(rows).map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let rule = widths.map(|width| "─".repeat(width));
    [line(head), line(&rule)].into_iter().chain(rows.iter().map(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["n1", "7"], ["longer", "8"]].map(|row| row.map(String::from));
        assert_eq!(render(&["node", "×"].map(String::from), &rows), "node    ×\n──────  ─\nn1      7\nlonger  8");
    }

    #[test]
    fn no_rows_leave_the_head() {
        assert_eq!(render(&["node".to_owned()], &[]), "node\n────");
    }
}
