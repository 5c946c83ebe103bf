//! Text from outside: made safe to print, and parsed. Pure.

use std::fmt::Display;
use std::os::fd::RawFd;
use std::str::FromStr;
use std::time::Duration;

/// `bytes` as text that is safe on a terminal and shows everything: invalid UTF-8 is replaced,
/// control characters and invisible characters are escaped.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        if character.is_control() || is_invisible(character) {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

/// Whether a character cannot be seen, looks like a plain space, or changes the order of others.
fn is_invisible(character: char) -> bool {
    let is_odd_space = character.is_whitespace() && character != ' ';
    is_odd_space
        || matches!(
            character,
            '\u{ad}' // soft hyphen
            | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            // Zero-width characters, marks and overrides of direction, and U+FEFF.
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Parses decimal digits alone: the standard parsers also take a sign. `None` for other text, or if
/// the number does not fit.
pub(crate) fn digits<N: FromStr>(text: impl AsRef<[u8]>) -> Option<N> {
    let text = text.as_ref();
    let has_leading_zero = text.len() > 1 && text.starts_with(b"0");
    if has_leading_zero || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses the number of an option, as [`digits`].
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse_number<N: FromStr<Err: Display>>(text: &str) -> Result<N, String> {
    match digits(text) {
        Some(number) => Ok(number),
        // The standard parser knows why the number does not fit.
        None => match text.parse::<N>() {
            Err(error) => Err(error.to_string()),
            Ok(_) => Err("a number has neither a sign nor leading zeros".into()),
        },
    }
}

/// About 30 years, which every clock can add to now.
const FOR_EVER: f64 = 1e9;

/// Parses seconds, with an optional fraction, as timeout(1) does, but in one spelling.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let has_leading_zero = text.starts_with('0') && !matches!(text.as_bytes(), [_] | [_, b'.', ..]);
    let seconds: f64 = text
        .parse()
        .ok()
        .filter(|seconds: &f64| !seconds.is_nan() && !has_leading_zero && !text.contains('+'))
        .ok_or("not a number of seconds")?;
    let duration = Duration::try_from_secs_f64(seconds.min(FOR_EVER));
    duration.map_err(|_| "not a number of seconds".to_owned())
}

/// A duration in words: `0.2 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// `up to 30 s `; nothing if the time is for ever.
pub(crate) fn up_to(duration: Duration) -> String {
    if duration.as_secs_f64() < FOR_EVER {
        format!("up to {} ", seconds(duration))
    } else {
        String::new()
    }
}

/// `1 handler`, `2 handlers`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Parses seconds above 0.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_seconds(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        timeout => Ok(timeout),
    }
}

/// Parses the number of a descriptor.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse_descriptor(text: &str) -> Result<RawFd, String> {
    digits(text).ok_or_else(|| "not the number of a descriptor".into())
}

/// Parses the permissions of a socket: octal, `0` to `777`, with one leading zero at most.
///
/// # Errors
/// The expected form, in words.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let octal = matches!(text.len(), 1..=4) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err("a mode is an octal number from 0 to 777, such as 660".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_spelling() {
        assert_eq!(digits::<u16>("0"), Some(0));
        assert_eq!(digits::<u16>(b"65535"), Some(65535));
        let bad = [
            "",
            "+5",
            "-5",
            " 5",
            "5 ",
            "65536",
            "x",
            "080",
            "00",
            "0000000001",
            "0x1",
        ];
        for bad in bad {
            assert_eq!(digits::<u16>(bad), None, "{bad:?}");
            assert!(parse_number::<u16>(bad).is_err(), "{bad:?}");
        }
        assert_eq!(digits::<u16>(b"\xff"), None);
    }

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_else() {
        assert_eq!(parse_seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_seconds("0"), Ok(Duration::ZERO));
        let longest = Duration::from_secs(1_000_000_000);
        for long in ["1e300", "inf", &"9".repeat(400)] {
            assert_eq!(parse_seconds(long), Ok(longest));
        }
        assert!(parse_timeout("0").is_err());
        let bad = [
            "", "-1", "+1", "1s", "nan", "x", "1e+3", "01", "00.5", "1.5.5", "0x1",
        ];
        for bad in bad {
            let error = Err("not a number of seconds".to_owned());
            assert_eq!(parse_seconds(bad), error, "{bad}");
            assert_eq!(parse_timeout(bad), error, "{bad}");
        }
    }

    #[test]
    fn times_and_counts_are_put_into_words() {
        let time = |text| up_to(parse_seconds(text).unwrap());
        assert_eq!(
            (time("0.5").as_str(), time("30").as_str()),
            ("up to 0.5 s ", "up to 30 s ")
        );
        assert_eq!((time("inf").as_str(), time("1e10").as_str()), ("", ""));
        assert_eq!(counted(1, "worker"), "1 worker");
        assert_eq!(counted(0, "worker"), "0 workers");
    }

    #[test]
    fn descriptors_are_numbers() {
        assert_eq!(parse_descriptor("7"), Ok(7));
        for bad in ["", "-1", "+7", "07", "x", "99999999999"] {
            let error = Err("not the number of a descriptor".to_owned());
            assert_eq!(parse_descriptor(bad), error, "{bad}");
        }
    }

    #[test]
    fn modes_are_parsed() {
        for (text, mode) in [("0", 0), ("660", 0o660), ("0777", 0o777)] {
            assert_eq!(parse_mode(text), Ok(mode));
        }
        let bad = "8,888,-1,+7,1000,1777,0o7,0x1ff, 7,rw,00660,777777777777777,";
        for bad in bad.split(',') {
            let error = parse_mode(bad).unwrap_err();
            assert!(error.contains("octal number from 0 to 777"), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_shown() {
        let text = "\u{feff}deny\u{a0}10.0.0.0/8\u{200b}\u{202e}\r";
        let shown = r"\u{feff}deny\u{a0}10.0.0.0/8\u{200b}\u{202e}\r";
        assert_eq!(printable(text.as_bytes()), shown);
        for plain in ["a b", "h\u{e9}t\u{e9}", "\u{65e5}\u{672c}", "\u{1f600}"] {
            assert_eq!(printable(plain.as_bytes()), plain);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_printed_has_no_control_characters(bytes: Vec<u8>) {
            assert!(!printable(&bytes).chars().any(char::is_control));
        }

        #[test]
        fn a_mode_is_what_chmod_would_make_of_it(text in "[0-9+o-]{0,5}", junk in ".*") {
            let octal = u32::from_str_radix(&text, 8).ok();
            match parse_mode(&text) {
                Ok(mode) => assert!(mode <= 0o777 && octal == Some(mode)),
                Err(_) => assert!(
                    octal.is_none_or(|mode| mode > 0o777)
                        || text.starts_with('+')
                        || text.len() > 4
                ),
            }
            let _ = parse_mode(&junk);
        }
    }
}
