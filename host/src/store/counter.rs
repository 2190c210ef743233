//! Numbers as values: ASCII decimals, as Redis has them, so that content may move there and back.

use crate::store::backend::Error;

/// What a number comes to with `delta` added.
pub(super) fn sum(value: Option<&[u8]>, delta: i64) -> Result<i64, Error> {
    let number = match value {
        None => 0,
        Some(value) => parse(value).ok_or(Error::NotAnInteger)?,
    };
    number.checked_add(delta).ok_or(Error::Overflow)
}

/// Redis takes the one way to write a number, and no `+1`, `01` or `-0`.
fn parse(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_way_to_be_written() {
        for (value, sum_with_one) in [("0", 1), ("-1", 0), ("41", 42)] {
            assert_eq!(sum(Some(value.as_bytes()), 1), Ok(sum_with_one));
        }
        for value in [
            "",
            "+1",
            "01",
            "-0",
            " 1",
            "1\n",
            "1.0",
            "9223372036854775808",
        ] {
            assert_eq!(sum(Some(value.as_bytes()), 1), Err(Error::NotAnInteger));
        }
        assert_eq!(sum(Some(b"\xff"), 1), Err(Error::NotAnInteger));
        let most = i64::MAX.to_string();
        assert_eq!(sum(Some(most.as_bytes()), 1), Err(Error::Overflow));
        assert_eq!(sum(None, i64::MIN), Ok(i64::MIN));
    }
}
