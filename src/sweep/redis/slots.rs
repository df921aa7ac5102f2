//! Hash slots of a Redis Cluster, by the key distribution model of its specification
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use std::fmt;

/// How many slots a cluster has.
pub(super) const COUNT: u16 = 16_384;

/// A word of [`Slots`] holds so many.
const BITS: u16 = 64;

/// Digits of a hash tag that is made up.
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The slot of a key: of what stands between the first `{` and the next `}`, if that is anything.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    crc16(tag(key).unwrap_or(key)) % COUNT
}

/// The slot of all keys that begin so; `None` if they may have several.
pub(super) fn slot_of_prefix(prefix: &[u8]) -> Option<u16> {
    tag(prefix).map(|tag| crc16(tag) % COUNT)
}

/// A hash tag whose slot is this one: the first that counting gives.
pub(super) fn tag_of(slot: u16) -> String {
    let spelt = |mut number: u32| {
        let mut digits = Vec::new();
        loop {
            digits.push(DIGITS[(number % 36) as usize]);
            number /= 36;
            if number == 0 {
                return digits;
            }
        }
    };
    let found = (0..=u32::MAX).map(spelt).find(|tag| crc16(tag) % COUNT == slot);
    found.map(|tag| tag.into_iter().map(char::from).collect()).unwrap_or_default()
}

/// The text between the first `{` and the next `}`, if there is any.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let from = key.iter().position(|byte| *byte == b'{')? + 1;
    let rest = key.get(from..)?;
    let length = rest.iter().position(|byte| *byte == b'}')?;
    rest.get(..length).filter(|tag| !tag.is_empty())
}

/// CRC-16 as XMODEM has it: polynomial 0x1021, from 0 on.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        let [high, low] = crc.to_be_bytes();
        let of_high = OF_BYTES.get(usize::from(high ^ byte)).copied().unwrap_or_default();
        (u16::from(low) << 8) ^ of_high
    })
}

/// The CRC of each byte alone.
const OF_BYTES: [u16; 256] = {
    let mut all = [0; 256];
    let (mut at, mut byte) = (0, 0_u16);
    while at < 256 {
        let (mut crc, mut bit) = (byte << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        all[at] = crc;
        (at, byte) = (at + 1, byte + 1);
    }
    all
};

/// A set of slots.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Slots(Box<[u64; (COUNT / BITS) as usize]>);

impl Slots {
    /// Those from one slot to another, both included.
    pub(super) fn range(from: u16, to: u16) -> Slots {
        let mut slots = Slots::default();
        (from..=to).for_each(|slot| slots.insert(slot));
        slots
    }

    /// All of them.
    pub(super) fn all() -> Slots {
        Slots::range(0, COUNT - 1)
    }

    pub(super) fn insert(&mut self, slot: u16) {
        if let Some(word) = self.0.get_mut(usize::from(slot / BITS)) {
            *word |= 1 << (slot % BITS);
        }
    }

    pub(super) fn has(&self, slot: u16) -> bool {
        let word = self.0.get(usize::from(slot / BITS)).copied().unwrap_or_default();
        word & (1 << (slot % BITS)) != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// These and others.
    pub(super) fn add(&mut self, others: &Slots) {
        self.0.iter_mut().zip(others.0.iter()).for_each(|(word, other)| *word |= other);
    }

    /// These without others.
    pub(super) fn without(mut self, others: &Slots) -> Slots {
        self.0.iter_mut().zip(others.0.iter()).for_each(|(word, other)| *word &= !other);
        self
    }

    /// Each of them, the lowest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..COUNT).filter(|slot| self.has(*slot))
    }

    /// Reads what [`fmt::Display`] writes, which is how Redis writes them, too; `None` for anything
    /// else.
    pub(super) fn parse(text: &str) -> Option<Slots> {
        let mut slots = Slots::default();
        for part in text.split([',', ' ']).filter(|part| !part.is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            if from > to || to >= COUNT {
                return None;
            }
            slots.add(&Slots::range(from, to));
        }
        Some(slots)
    }
}

impl Default for Slots {
    /// None.
    fn default() -> Slots {
        Slots(Box::new([0; (COUNT / BITS) as usize]))
    }
}

impl fmt::Display for Slots {
    /// Ranges with commas: `0-5460,5462`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = self.iter().peekable();
        let mut comma = "";
        while let Some(from) = all.next() {
            let mut to = from;
            while let Some(next) = all.next_if_eq(&(to + 1)) {
                to = next;
            }
            match from == to {
                true => write!(f, "{comma}{from}")?,
                false => write!(f, "{comma}{from}-{to}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNT, Slots, slot_of, slot_of_prefix, tag_of};

    /// Slots that Redis itself gives (`CLUSTER KEYSLOT`).
    #[test]
    fn a_key_has_the_slot_that_redis_gives_it() {
        for (key, slot) in [
            (&b"123456789"[..], 12_739),
            (b"foo", 12_182),
            (b"bar", 5_061),
            (b"{foo}bar", 12_182),
            (b"a{foo}{bar}", 12_182),
            (b"", 0),
        ] {
            assert_eq!(slot_of(key), slot, "{}", key.escape_ascii());
        }
        // Nothing between the braces, or no end of them: all of it counts.
        assert_ne!(slot_of(b"{}foo"), slot_of(b"{}bar"));
        assert_ne!(slot_of(b"{foo"), slot_of(b"foo"));
    }

    #[test]
    fn what_begins_with_a_whole_tag_has_one_slot() {
        assert_eq!(slot_of_prefix(b"user:{foo}:"), Some(12_182));
        for open in [&b"user:"[..], b"user:{foo", b"{}{foo}:", b""] {
            assert_eq!(slot_of_prefix(open), None, "{}", open.escape_ascii());
        }
    }

    #[test]
    fn each_slot_has_a_tag_of_its_own() {
        for slot in (0..COUNT).step_by(577).chain([COUNT - 1]) {
            let tag = tag_of(slot);
            assert_eq!(slot_of(format!("walsweep:s:{{{tag}}}").as_bytes()), slot, "{tag}");
            assert!(tag.len() <= 5, "{tag}");
        }
    }

    #[test]
    fn sets_are_written_as_ranges_and_read_back() {
        let mut slots = Slots::range(0, 5_460);
        slots.insert(5_462);
        slots.add(&Slots::range(16_382, 16_383));
        assert_eq!(slots.to_string(), "0-5460,5462,16382-16383");
        assert_eq!(Slots::parse("0-5460 5462 16382-16383"), Some(slots.clone()));
        assert_eq!(Slots::parse(&slots.to_string()), Some(slots.clone()));
        assert_eq!(Slots::parse(""), Some(Slots::default()));
        for wrong in ["5-4", "16384", "a", "1-", "-1"] {
            assert_eq!(Slots::parse(wrong), None, "{wrong}");
        }
        let rest = Slots::all().without(&slots);
        assert_eq!(rest.to_string(), "5461,5463-16381");
        assert!(slots.has(5_462) && !rest.has(5_462) && !rest.has(u16::MAX));
        assert!(rest.clone().without(&rest).is_empty());
    }
}
