//! Numbers as rooms of versions 1 to 5 hash them. The specification of those versions says nothing of floats and large
//! integers; what is signed in the network is what Python writes, in which most of those events were made: integers
//! digit by digit, floats with the fewest digits that read back the same, `repr` choosing between the two notations.
//! <https://spec.matrix.org/v1.19/rooms/v6/#canonical-json>

use ruma::{CanonicalJsonValue, Int};

/// Digits of an integer at most: what Python reads.
const MAX_DIGITS: usize = 4_300;
/// From so many digits before the point on, a float is written with an exponent.
const MOST_BEFORE: i32 = 16;
/// And with more than so many zeros behind the point.
const MOST_ZEROS: i32 = 3;

/// The value of a number of JSON, `text` being all of it; `None` for what is none, or what nobody else could read.
pub(super) fn value(text: &str) -> Option<CanonicalJsonValue> {
    let written = written(text)?;
    if let Some(int) = written.parse::<i64>().ok().and_then(|int| Int::try_from(int).ok()) {
        return Some(int.into());
    }
    Some(format!("{}{}{written}", super::MARK, super::NUMBER).into())
}

/// A whole number beyond 53 bits in an object that was read leniently, as far as 63 bits go.
pub(crate) fn big_integer(value: &CanonicalJsonValue) -> Option<i64> {
    value.as_str()?.strip_prefix(super::MARK)?.strip_prefix(super::NUMBER)?.parse().ok()
}

/// How a number of JSON is written where it is hashed.
pub(super) fn written(text: &str) -> Option<String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.bytes().take_while(u8::is_ascii_digit).count();
    if whole == 0 || whole > 1 && digits.starts_with('0') {
        return None;
    }
    if whole == digits.len() {
        let zero = digits == "0";
        return (whole <= MAX_DIGITS).then(|| if zero { "0".to_owned() } else { text.to_owned() });
    }
    if !is_tail(&digits[whole..]) {
        return None;
    }
    let float: f64 = text.parse().ok()?;
    float.is_finite().then(|| repr(float))
}

/// A fraction, an exponent, or both.
fn is_tail(tail: &str) -> bool {
    let mut rest = tail;
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        return !exponent.is_empty() && digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

/// A finite float as Python's `repr` writes it.
fn repr(float: f64) -> String {
    // The shortest digits that read back the same, in the form `d.ddde±x`.
    let shortest = format!("{float:e}");
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits = mantissa.replace('.', "");
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // Where the point stands, counted from the first digit.
    let point = exponent + 1;
    if !(-MOST_ZEROS..=MOST_BEFORE).contains(&point) {
        let (first, rest) = digits.split_at(1);
        let rest = if rest.is_empty() { String::new() } else { format!(".{rest}") };
        let (minus, size) = (if exponent < 0 { '-' } else { '+' }, exponent.abs());
        return format!("{sign}{first}{rest}e{minus}{size:02}");
    }
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if point <= 0 {
        format!("{sign}0.{}{digits}", zeros(-point))
    } else if count <= point {
        format!("{sign}{digits}{}.0", zeros(point - count))
    } else {
        let (before, behind) = digits.split_at(usize::try_from(point).unwrap_or(0));
        format!("{sign}{before}.{behind}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3 makes of these: `json.dumps(json.loads(text))`.
    const OTHERS: &[(&str, &str)] = &[
        ("0", "0"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("0.0", "0.0"),
        ("1.0", "1.0"),
        ("1.5", "1.5"),
        ("-1.5", "-1.5"),
        ("100", "100"),
        ("1e3", "1000.0"),
        ("1E3", "1000.0"),
        ("1e+3", "1000.0"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("1e17", "1e+17"),
        ("123456789012345678.0", "1.2345678901234568e+17"),
        ("1234567890123456.0", "1234567890123456.0"),
        ("12345678901234567.0", "1.2345678901234568e+16"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("0.000123", "0.000123"),
        ("1e-4", "0.0001"),
        ("1e-5", "1e-05"),
        ("1.5e-5", "1.5e-05"),
        ("5e-324", "5e-324"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("2.5e10", "25000000000.0"),
        ("9007199254740991", "9007199254740991"),
        ("9007199254740992", "9007199254740992"),
        ("9007199254740993.0", "9007199254740992.0"),
        ("18446744073709551616", "18446744073709551616"),
        ("-18446744073709551616", "-18446744073709551616"),
        ("9223372036854775807", "9223372036854775807"),
        ("0.1", "0.1"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("3.141592653589793238", "3.141592653589793"),
        ("1e22", "1e+22"),
        ("1e23", "1e+23"),
        ("1e21", "1e+21"),
        ("4.35", "4.35"),
        ("2.2250738585072014e-308", "2.2250738585072014e-308"),
        ("50.0", "50.0"),
        ("1e2", "100.0"),
        ("99.99999999999999999", "100.0"),
        ("-1e-7", "-1e-07"),
        ("100000.0e0", "100000.0"),
        ("1.0e-3", "0.001"),
        ("10928588.983213553", "10928588.983213553"),
        ("1.4186613525849614e+134", "1.4186613525849614e+134"),
        ("-7.571968556055867e-74", "-7.571968556055867e-74"),
        ("-1.4074705188261364e+113", "-1.4074705188261364e+113"),
        ("-3.3339745473042614e-121", "-3.3339745473042614e-121"),
        ("-1.2342180766211395e-271", "-1.2342180766211395e-271"),
        ("-5.126864004244935e+111", "-5.126864004244935e+111"),
        ("-2.1520217579844227e+32", "-2.1520217579844227e+32"),
        ("0.1399601630397701", "0.1399601630397701"),
        ("1.01853664031722e-244", "1.01853664031722e-244"),
        ("2.9704598186234577e-115", "2.9704598186234577e-115"),
        ("3.0534183338726823e+150", "3.0534183338726823e+150"),
        ("-2.3027782228163463e+146", "-2.3027782228163463e+146"),
        ("3.56409621163656e+161", "3.56409621163656e+161"),
        ("6.352929017207453e-183", "6.352929017207453e-183"),
        ("0.3146575865605324", "0.3146575865605324"),
        ("-1.2761724801771812e-23", "-1.2761724801771812e-23"),
        ("2.0868668176225336e+195", "2.0868668176225336e+195"),
        ("3.66898827745704e-84", "3.66898827745704e-84"),
        ("-1.389122273370197e+145", "-1.389122273370197e+145"),
        ("1.7548715433165102e+172", "1.7548715433165102e+172"),
        ("-1039514241563211.8", "-1039514241563211.8"),
        ("5.7804021771411506e-220", "5.7804021771411506e-220"),
        ("-2.8497478716107576e-163", "-2.8497478716107576e-163"),
        ("3.490691392124745e+240", "3.490691392124745e+240"),
        ("152463329438162023e-30", "1.52463329438162e-13"),
        ("241486765328446387e-17", "2.414867653284464"),
        ("333546151605090829e-10", "33354615.160509083"),
        ("229303781167426547e4", "2.2930378116742654e+21"),
        ("781485332088050831e-17", "7.814853320880508"),
        ("796255952649279029e-18", "0.7962559526492791"),
        ("441826609587831091e-11", "4418266.0958783105"),
        ("416423639517601821e-4", "41642363951760.18"),
        ("304154461948655717e-26", "3.041544619486557e-09"),
        ("347443386584951402e-30", "3.474433865849514e-13"),
        ("781604971493856151e-9", "781604971.4938562"),
        ("357357162099824871e-8", "3573571620.9982486"),
        ("352868065513989787e0", "3.5286806551398976e+17"),
        ("364084668435829138e-19", "0.03640846684358291"),
        ("544799625558696160e-19", "0.054479962555869614"),
    ];

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (text, expected) in OTHERS {
            assert_eq!(written(text).as_deref(), Some(*expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let long = "1".repeat(MAX_DIGITS + 1);
        for text in [
            "", "-", "01", "+1", ".5", "1.", "1.e5", "1e", "1e+", "0x1", "1e999", "-1e999", "1_0", "NaN",
            &long,
        ] {
            assert_eq!(written(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_has_no_place_is_kept_as_text() {
        assert_eq!(value("-0"), Some(Int::from(0_u8).into()));
        assert_eq!(value("9007199254740991"), Some(Int::MAX.into()));
        let big = value("9007199254740992").unwrap();
        assert_eq!(big_integer(&big), Some(9_007_199_254_740_992));
        assert_eq!(big_integer(&value("9223372036854775808").unwrap()), None);
        assert_eq!(big_integer(&value("1.5").unwrap()), None);
    }
}
