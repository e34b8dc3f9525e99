//! Helpers around the text of statements. One text serves both engines.

/// How many values one `IN (…)` list or multi-row insert carries at most: far below both engines' limits of
/// parameters (32,766 and 65,535) with up to 16 columns.
pub(crate) const CHUNK: usize = 500;

/// Rows of one insert: enough to amortise a statement, and a text that is still quick to look up.
const PIECE: usize = 128;

/// Declares the statements of a file as constants, and a list of them all, which a test prepares on both engines.
/// `$list` stands for a list of parameters and `$rows` for rows of parameters; [`list`] and [`rows`] expand them.
macro_rules! statements {
    ($($(#[$meta:meta])* $name:ident = $text:expr;)*) => {
        $($(#[$meta])* const $name: &str = $text;)*
        /// Every statement of this file.
        pub(crate) const STATEMENTS: &[(&str, &str)] = &[$((stringify!($name), $text),)*];
    };
}
pub(crate) use statements;

/// Replaces `$list` by `count` parameters that start at number `first`.
pub(crate) fn list(text: &str, first: usize, count: usize) -> String {
    let mut parameters = String::with_capacity(count * 5);
    for index in 0..count {
        if index > 0 {
            parameters.push(',');
        }
        parameters.push('$');
        parameters.push_str(&(first + index).to_string());
    }
    text.replace("$list", &parameters)
}

/// Replaces `$rows` by `count` rows of `columns` parameters.
pub(crate) fn rows(text: &str, columns: usize, count: usize) -> String {
    let mut parameters = String::with_capacity(count * columns * 6);
    for row in 0..count {
        parameters.push_str(if row > 0 { ",(" } else { "(" });
        for column in 0..columns {
            if column > 0 {
                parameters.push(',');
            }
            parameters.push('$');
            parameters.push_str(&(row * columns + column + 1).to_string());
        }
        parameters.push(')');
    }
    text.replace("$rows", &parameters)
}

/// So many rows go in one piece, whatever their number: to PostgreSQL each statement is a journey, and a group of writes
/// would take three for thirteen rows.
const WHOLE: usize = 32;

/// Cuts rows into pieces: powers of two while there are many, so that few texts need preparing however many rows there
/// are; what is left of them goes in one.
pub(crate) fn pieces<T>(mut all: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let count = match all.len() {
            0 => return None,
            few @ 1..=WHOLE => few,
            many => 1 << PIECE.min(many).ilog2(),
        };
        let (piece, rest) = all.split_at(count);
        all = rest;
        Some(piece)
    })
}

/// Lists are padded to a power of two with their last value, so that few texts need preparing.
pub(crate) fn padded<T: Clone>(values: &[T]) -> Vec<T> {
    let mut padded = values.to_vec();
    if let Some(last) = values.last() {
        padded.resize(values.len().next_power_of_two(), last.clone());
    }
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_lists_and_rows() {
        assert_eq!(list("a IN ($list)", 2, 3), "a IN ($2,$3,$4)");
        assert_eq!(rows("VALUES $rows", 2, 2), "VALUES ($1,$2),($3,$4)");
        assert_eq!(padded(&[1, 2, 3]), vec![1, 2, 3, 3]);
    }

    #[test]
    fn pieces_are_few_and_lose_nothing() {
        let all: Vec<usize> = (0..300).collect();
        let lengths = |all: &[usize]| pieces(all).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&all), [128, 128, 32, 12]);
        assert_eq!(lengths(&all[..13]), [13]);
        assert_eq!(lengths(&all[..45]), [32, 13]);
        assert_eq!(pieces(&all).flatten().copied().collect::<Vec<_>>(), all);
        assert_eq!(pieces::<usize>(&[]).count(), 0);
    }
}
