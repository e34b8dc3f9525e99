//! Labels, the only thing Complement looks containers, images and networks up by.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

pub type Labels = BTreeMap<String, String>;

/// The `filters` parameter of a listing: every condition must hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Debug, PartialEq, Eq)]
enum Condition {
    Has(String),
    Equals(String, String),
}

impl Filter {
    /// Reads `{"label":{"key":true,"key=value":true}}`. Any other kind of filter is refused: ignoring it would list,
    /// and let Complement delete, too much.
    pub fn parse(json: &str) -> Result<Self> {
        let kinds: BTreeMap<String, BTreeMap<String, bool>> =
            serde_json::from_str(json).context("filters are not of the form {\"label\":{…}}")?;
        let mut conditions = Vec::new();
        for (kind, wanted) in kinds {
            if kind != "label" {
                bail!("no filter of the kind '{kind}' is known");
            }
            conditions.extend(wanted.into_keys().map(|text| match text.split_once('=') {
                Some((key, value)) => Condition::Equals(key.to_owned(), value.to_owned()),
                None => Condition::Has(text),
            }));
        }
        Ok(Self { conditions })
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.conditions.iter().all(|condition| match condition {
            Condition::Has(key) => labels.contains_key(key),
            Condition::Equals(key, value) => labels.get(key) == Some(value),
        })
    }
}

/// Reads one change of a commit: `LABEL "key"="value"`.
pub fn parse_change(change: &str) -> Result<(String, String)> {
    let rest = change.strip_prefix("LABEL ").with_context(|| format!("not a LABEL change: {change}"))?;
    let (key, rest) = quoted(rest.trim_start())?;
    let rest = rest.strip_prefix('=').with_context(|| format!("no '=' after the key in: {change}"))?;
    let (value, rest) = quoted(rest)?;
    if !rest.trim().is_empty() {
        bail!("something follows the value in: {change}");
    }
    Ok((key, value))
}

/// Takes one quoted string off the front. A backslash escapes only itself, the quote and the dollar sign; before any
/// other character it stands for itself, so Complement's `\n` stays two characters.
fn quoted(text: &str) -> Result<(String, &str)> {
    let body = text.strip_prefix('"').with_context(|| format!("no opening quote in: {text}"))?;
    let mut value = String::new();
    let mut chars = body.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &body[at + 1..])),
            '\\' => match chars.next_if(|(_, next)| matches!(next, '\\' | '"' | '$')) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push('\\'),
            },
            _ => value.push(c),
        }
    }
    bail!("no closing quote in: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_filter_wants_every_condition() {
        let filter =
            Filter::parse(r#"{"label":{"complement_context":true,"complement_pkg=fed":true}}"#).unwrap();
        assert!(filter.matches(&labels(&[("complement_context", "x"), ("complement_pkg", "fed")])));
        assert!(!filter.matches(&labels(&[("complement_context", "x"), ("complement_pkg", "csapi")])));
        assert!(!filter.matches(&labels(&[("complement_pkg", "fed")])));
    }

    #[test]
    fn a_filter_on_an_empty_value_is_not_a_filter_on_presence() {
        let filter = Filter::parse(r#"{"label":{"complement_blueprint=":true}}"#).unwrap();
        assert!(filter.matches(&labels(&[("complement_blueprint", "")])));
        assert!(!filter.matches(&labels(&[("complement_blueprint", "alice")])));
        assert!(!filter.matches(&labels(&[])));
    }

    #[test]
    fn unknown_filters_are_refused() {
        assert!(Filter::parse(r#"{"name":{"hs1":true}}"#).is_err());
        assert!(Filter::parse("label").is_err());
        assert!(Filter::parse("{}").unwrap().matches(&labels(&[])));
    }

    #[test]
    fn a_change_is_unescaped_as_the_engine_does() {
        let change = r#"LABEL "access_token_@alice:hs1"="a=b \"c\" \$d \\e\n""#;
        let (key, value) = parse_change(change).unwrap();
        assert_eq!(key, "access_token_@alice:hs1");
        assert_eq!(value, r#"a=b "c" $d \e\n"#);
        assert_eq!(parse_change(r#"LABEL "k"="""#).unwrap(), ("k".to_owned(), String::new()));
    }

    #[test]
    fn broken_changes_are_refused() {
        for change in
            [r#"ENV "k"="v""#, r#"LABEL "k""v""#, r#"LABEL "k"="v"#, r"LABEL k=v", r#"LABEL "k"="v" x"#]
        {
            assert!(parse_change(change).is_err(), "{change}");
        }
    }
}
