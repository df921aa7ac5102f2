//! Numbers in sentences.

/// A count with its noun: `1 key`, `2 keys`, `1 000 prefixes`; digits in groups of three.
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    let plural = match (count, noun.ends_with('x')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {noun}{plural}", grouped(count))
}

/// A number in groups of three digits.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_one_and_others_are_many() {
        for (count, noun, words) in [
            (0, "key", "0 keys"),
            (1, "key", "1 key"),
            (2, "message prefix", "2 message prefixes"),
            (1_234_567, "key", "1 234 567 keys"),
        ] {
            assert_eq!(counted(count, noun), words);
        }
    }
}
