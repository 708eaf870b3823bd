//! Rows of CSV (RFC 4180).

/// One row: fields separated by commas; one with a comma, a quote or a line break is quoted.
pub(super) fn row<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |field: &str| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    fields.into_iter().map(quoted).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(row(["a", "", "b c"]), "a,,b c");
        assert_eq!(
            row(["a,b", "say \"x\"", "1\n2", "日本"]),
            "\"a,b\",\"say \"\"x\"\"\",\"1\n2\",日本"
        );
    }
}
