//! Slots of a Redis Cluster: that of a key, and who has which
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>).

use redis::Value;

/// How many slots there are.
const COUNT: u16 = 16_384;

/// The slot of a key: of its hash tag, if it has one.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    let begin = key.iter().position(|byte| *byte == b'{').map(|at| at + 1);
    let tag = begin.and_then(|begin| {
        let length = key[begin..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[begin..begin + length])
    });
    crc16(tag.unwrap_or(key)) % COUNT
}

/// CRC-16 as XMODEM has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// The ports of the primaries, each with a range of its slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots(Vec<(u16, u16, u16)>);

impl Slots {
    /// Reads the answer of CLUSTER SLOTS; `None` if it is not one.
    pub(crate) fn read(answer: &Value) -> Option<Slots> {
        let Value::Array(ranges) = answer else { return None };
        let number = |value: &Value| match value {
            Value::Int(number) => u16::try_from(*number).ok(),
            _ => None,
        };
        let range = |range: &Value| {
            let Value::Array(parts) = range else { return None };
            let Some(Value::Array(primary)) = parts.get(2) else { return None };
            Some((number(parts.first()?)?, number(parts.get(1)?)?, number(primary.get(1)?)?))
        };
        ranges.iter().map(range).collect::<Option<Vec<_>>>().map(Slots)
    }

    /// The port of a slot's primary.
    pub(crate) fn owner(&self, slot: u16) -> Option<u16> {
        let found = self.0.iter().find(|(from, to, _)| (*from..=*to).contains(&slot));
        found.map(|(_, _, port)| *port)
    }

    /// The ports of all primaries.
    pub(crate) fn primaries(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.0.iter().map(|(_, _, port)| *port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// A slot has another owner: a later range is found before the others.
    pub(crate) fn moved(&mut self, slot: u16, port: u16) {
        self.0.insert(0, (slot, slot, port));
    }
}
