//! Character references of HTML: numbers, and the names that pages really use.
//! <https://html.spec.whatwg.org/multipage/named-characters.html>

/// The longest name, and more than any number needs.
const LONGEST: usize = 10;

/// Names of punctuation and symbols; those of letters with accents are made by [`accented`].
const NAMES: &[(&str, &str)] = &[
    ("amp", "&"),
    ("AMP", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("QUOT", "\""),
    ("apos", "'"),
    ("nbsp", "\u{a0}"),
    ("ndash", "\u{2013}"),
    ("mdash", "\u{2014}"),
    ("hellip", "\u{2026}"),
    ("lsquo", "\u{2018}"),
    ("rsquo", "\u{2019}"),
    ("sbquo", "\u{201a}"),
    ("ldquo", "\u{201c}"),
    ("rdquo", "\u{201d}"),
    ("bdquo", "\u{201e}"),
    ("laquo", "\u{ab}"),
    ("raquo", "\u{bb}"),
    ("lsaquo", "\u{2039}"),
    ("rsaquo", "\u{203a}"),
    ("middot", "\u{b7}"),
    ("bull", "\u{2022}"),
    ("copy", "\u{a9}"),
    ("reg", "\u{ae}"),
    ("trade", "\u{2122}"),
    ("deg", "\u{b0}"),
    ("euro", "\u{20ac}"),
    ("pound", "\u{a3}"),
    ("yen", "\u{a5}"),
    ("cent", "\u{a2}"),
    ("sect", "\u{a7}"),
    ("para", "\u{b6}"),
    ("times", "\u{d7}"),
    ("divide", "\u{f7}"),
    ("plusmn", "\u{b1}"),
    ("frac12", "\u{bd}"),
    ("iexcl", "\u{a1}"),
    ("iquest", "\u{bf}"),
    ("larr", "\u{2190}"),
    ("rarr", "\u{2192}"),
    ("szlig", "\u{df}"),
    ("aelig", "\u{e6}"),
    ("AElig", "\u{c6}"),
    ("oelig", "\u{153}"),
    ("OElig", "\u{152}"),
    ("eth", "\u{f0}"),
    ("ETH", "\u{d0}"),
    ("thorn", "\u{fe}"),
    ("THORN", "\u{de}"),
    ("shy", ""),
    ("zwj", "\u{200d}"),
    ("zwnj", "\u{200c}"),
];

/// Accents, each with the letters that have it in Latin-1 and what comes of them.
const ACCENTS: &[(&str, &str, &str)] = &[
    ("grave", "aeiouAEIOU", "àèìòùÀÈÌÒÙ"),
    ("acute", "aeiouyAEIOUY", "áéíóúýÁÉÍÓÚÝ"),
    ("circ", "aeiouAEIOU", "âêîôûÂÊÎÔÛ"),
    ("uml", "aeiouyAEIOU", "äëïöüÿÄËÏÖÜ"),
    ("tilde", "anoANO", "ãñõÃÑÕ"),
    ("cedil", "cC", "çÇ"),
    ("ring", "aA", "åÅ"),
    ("slash", "oO", "øØ"),
    ("caron", "sS", "šŠ"),
];

/// Decodes the references in a text; what is none stays.
pub(super) fn decode(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '#').unwrap_or(rest.len());
        let known = (end <= LONGEST).then(|| reference(&rest[..end])).flatten();
        match known {
            Some(letter) => {
                decoded.push_str(&letter);
                rest = rest[end..].strip_prefix(';').unwrap_or(&rest[end..]);
            }
            None => decoded.push('&'),
        }
    }
    decoded.push_str(rest);
    decoded
}

fn reference(name: &str) -> Option<String> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => number.parse().ok()?,
        };
        return char::from_u32(code).map(|letter| letter.to_string());
    }
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, letter)) => Some((*letter).to_owned()),
        None => accented(name),
    }
}

fn accented(name: &str) -> Option<String> {
    let letter = name.chars().next().filter(char::is_ascii_alphabetic)?;
    let (_, letters, made) = ACCENTS.iter().find(|(accent, _, _)| *accent == &name[1..])?;
    let place = letters.find(letter)?;
    made.chars().nth(place).map(|letter| letter.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_decoded_and_the_rest_stays() {
        let text =
            "&lt;b&gt; &#65;&#x42;&eacute;&Ouml;&ntilde; a&b &unknown; &amp;amp; &#xd800; &#99999999999; &";
        assert_eq!(decode(text), "<b> ABéÖñ a&b &unknown; &amp; &#xd800; &#99999999999; &");
        assert_eq!(decode("&amp"), "&");
        for (_, letters, made) in ACCENTS {
            assert_eq!(letters.chars().count(), made.chars().count());
        }
    }
}
