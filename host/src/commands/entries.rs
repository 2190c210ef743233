//! The content of a store as text: each entry is a line of JSON.

use std::io::BufRead;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

/// An entry that was read.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// The line that has it, to say what is wrong with it.
    pub(crate) place: String,
}

/// Those of a text, which is called `name` where one of its lines is none.
pub(crate) fn read(text: impl BufRead, name: &str) -> impl Iterator<Item = Result<Entry>> {
    text.lines().enumerate().map(move |(number, line)| {
        let place = format!("line {} of {name}", number + 1);
        let (key, value) = entry(&line?).with_context(|| place.clone())?;
        Ok(Entry { key, value, place })
    })
}

/// An entry as JSON: a value that is no text stands in hexadecimal digits.
pub(crate) fn line(key: &str, value: Vec<u8>) -> Value {
    match String::from_utf8(value) {
        Ok(text) => json!({ "key": key, "value": text }),
        Err(error) => {
            let bytes = error.as_bytes().iter();
            let digits: String = bytes.map(|byte| format!("{byte:02x}")).collect();
            json!({ "key": key, "hex": digits })
        }
    }
}

fn entry(line: &str) -> Result<(String, Vec<u8>)> {
    let wanted = || anyhow!(r#"want {{"key": TEXT, "value": TEXT}}, or "hex" for "value""#);
    let entry: Value = serde_json::from_str(line).map_err(|_| wanted())?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let key = text("key").ok_or_else(wanted)?.to_owned();
    let value = match (text("value"), text("hex")) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(digits)) => bytes(digits).ok_or_else(wanted)?,
        _ => return Err(wanted()),
    };
    Ok((key, value))
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| {
        let [high, low] = pair else {
            return None;
        };
        let digit = |digit: u8| char::from(digit).to_digit(16);
        u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_line_and_an_entry_again() {
        for value in [&b""[..], b"text\n\x00", b"\xff\x00\x0a"] {
            let line = line("a \"key\"\n", value.to_vec()).to_string();
            assert!(!line.contains('\n'));
            let again = entry(&line).expect("an entry");
            assert_eq!(again, ("a \"key\"\n".to_owned(), value.to_vec()));
        }
        for wrong in [
            "",
            "{}",
            "[]",
            r#"{"key":"a"}"#,
            r#"{"key":"a","hex":"0"}"#,
            r#"{"key":"a","hex":"0g"}"#,
        ] {
            assert!(entry(wrong).is_err(), "{wrong}");
        }
    }
}
