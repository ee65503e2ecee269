//! Settings as a file that says the same, in the peer's form: nested tables two spaces further in,
//! texts in single quotes.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::RawConfig;

/// The file.
pub fn dump(raw: &RawConfig) -> String {
    let table = Table::try_from(raw).expect("settings are texts, numbers, lists and tables");
    let mut text = String::new();
    write_table(&mut text, &table, &[]);
    text
}

/// Scalars first: after the first sub-table they would belong to that.
fn write_table(text: &mut String, table: &Table, path: &[&str]) {
    let indent = "  ".repeat(path.len());
    for (key, value) in table.iter().filter(|(_, value)| !is_nested(value)) {
        let line = format!("{indent}{} = {}\n", quoted_key(key), scalar(value));
        text.push_str(&line);
    }
    for (key, value) in table.iter().filter(|(_, value)| is_nested(value)) {
        let path = [path, &[key]].concat();
        let name = path.iter().map(|key| quoted_key(key)).collect::<Vec<_>>().join(".");
        match value {
            Value::Table(table) => {
                let _ = write!(text, "\n{indent}[{name}]\n");
                write_table(text, table, &path);
            }
            Value::Array(tables) => {
                for table in tables.iter().filter_map(Value::as_table) {
                    let _ = write!(text, "\n{indent}[[{name}]]\n");
                    write_table(text, table, &path);
                }
            }
            _ => {}
        }
    }
}

fn is_nested(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::Array(list) => list.first().is_some_and(Value::is_table),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(scalar).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    if text.contains(|c: char| c == '\'' || c.is_control()) {
        Value::String(text.to_owned()).to_string()
    } else {
        format!("'{text}'")
    }
}

fn quoted_key(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(is_bare) { key.to_owned() } else { quoted(key) }
}
