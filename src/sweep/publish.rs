//! Removals that are told on a channel, for caches inside of processes.
//!
//! A message is `{"keys":[…],"patterns":[…],"lsn":"…"}`. A name is a text, or where it is no UTF-8
//! `{"base64":"…"}`. Messages come in the order in which removals are acknowledged, each at most
//! once, and none before its removal. Who listens may miss some, so nothing waits for them: what
//! there is no room for is told as the patterns of its rules, and then not at all.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::budget::Charge;
use crate::keys::{Item, ItemKind, KeySet, Reach, RuleId};
use crate::lsn::Lsn;

/// A message gets no more names when it has so many bytes: less than a page of a slow listener's
/// output buffer, and what one PUBLISH copies in some microseconds.
const MESSAGE_BYTES: usize = 32 << 10;

/// Messages that wait to be sent.
pub(in crate::sweep) struct Publisher {
    is_on: bool,
    bytes_max: usize,
    outbox: Mutex<Outbox>,
}

struct Outbox {
    messages: VecDeque<String>,
    bytes: usize,
    charge: Charge,
    /// Messages that there was no room for.
    dropped: u64,
}

/// Which part of a key set is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Names of what one command removes.
    Named,
    /// Hashes that are read in pages.
    Paged,
    /// Patterns.
    Patterns,
}

/// A message that is being written.
struct Message {
    lists: [String; 2],
    lsn: Lsn,
}

impl Publisher {
    /// Nothing to tell; of at most so many bytes, if anybody is told at all.
    pub(super) fn new(is_on: bool, bytes_max: usize, charge: Charge) -> Publisher {
        let outbox = Outbox { messages: VecDeque::new(), bytes: 0, charge, dropped: 0 };
        Publisher { is_on, bytes_max, outbox: Mutex::new(outbox) }
    }

    /// Tells of a part of what was removed for commits up to `lsn`. Where there is no room for
    /// names, the patterns of their rules stand for them.
    pub(super) fn removed(&self, keys: &KeySet, part: Part, lsn: Lsn) {
        if !self.is_on {
            return;
        }
        // What a set names is told when it is removed.
        let items = keys.items().filter(|(_, item)| item.kind() == ItemKind::Field);
        let items = items.filter(|(_, item)| Part::of(*item) == part);
        let items: Vec<(RuleId, Cow<'_, [u8]>)> = items
            .map(|(rule, item)| (rule, item.only_key().unwrap_or(Cow::Borrowed(item.key()))))
            .collect();
        let items = || items.iter().map(|(rule, name)| (*rule, &**name));
        let patterns = || keys.patterns().map(|(rule, one)| (rule, one.as_bytes())).chain(items());
        let exact = || keys.exact().filter(|_| part == Part::Named).chain(items());
        let none = std::iter::empty;
        let name = |(_, name)| name;
        let is_told = match part {
            Part::Named | Part::Paged => self.put(exact().map(name), none(), lsn),
            Part::Patterns => self.put(none(), patterns().map(name), lsn),
        };
        if is_told {
            return;
        }
        let rule = |(rule, _)| rule;
        let rules: BTreeSet<RuleId> = match part {
            Part::Named | Part::Paged => exact().map(rule).collect(),
            Part::Patterns => patterns().map(rule).collect(),
        };
        let widest = rules.iter().flat_map(|rule| keys.widest(*rule));
        if !self.put(none(), widest, lsn) {
            self.outbox().dropped += 1;
        }
    }

    /// Tells of keys that were removed because a set names them. What they are is known nowhere
    /// else: where there is no room, they are all that there are.
    pub(in crate::sweep) fn named(&self, names: &[&[u8]], lsn: Lsn) {
        if !self.is_on || names.is_empty() {
            return;
        }
        let all = || std::iter::once(&b"*"[..]);
        let is_told = self.put(names.iter().copied(), std::iter::empty(), lsn)
            || self.put(std::iter::empty(), all(), lsn);
        if !is_told {
            self.outbox().dropped += 1;
        }
    }

    /// Writes messages; all of them or none, if there is no room.
    fn put<'a>(
        &self,
        keys: impl Iterator<Item = &'a [u8]>,
        patterns: impl Iterator<Item = &'a [u8]>,
        lsn: Lsn,
    ) -> bool {
        let mut outbox = self.outbox();
        let room = self.bytes_max.saturating_sub(outbox.bytes);
        let (mut written, mut bytes) = (Vec::new(), 0);
        let mut message = Message::new(lsn);
        let names = keys.map(|key| (0, key)).chain(patterns.map(|pattern| (1, pattern)));
        for (list, name) in names {
            message.push(list, name);
            if message.len() > MESSAGE_BYTES {
                let text = std::mem::replace(&mut message, Message::new(lsn)).text();
                bytes += text.len();
                written.push(text);
            }
            if bytes + message.len() > room {
                return false;
            }
        }
        if !message.is_empty() {
            written.push(message.text());
            bytes += written.last().map_or(0, String::len);
        }
        if bytes > room {
            return false;
        }
        outbox.bytes += bytes;
        outbox.messages.extend(written);
        outbox.weigh();
        true
    }

    /// The next message.
    pub(super) fn next(&self) -> Option<String> {
        if !self.is_on {
            return None;
        }
        let mut outbox = self.outbox();
        let message = outbox.messages.pop_front()?;
        outbox.bytes -= message.len();
        outbox.weigh();
        Some(message)
    }

    /// Forgets what waits; gives how many messages that were, with those there was no room for.
    pub(super) fn forget(&self) -> u64 {
        let mut outbox = self.outbox();
        let count = outbox.messages.len() as u64 + std::mem::take(&mut outbox.dropped);
        (outbox.messages, outbox.bytes) = (VecDeque::new(), 0);
        outbox.weigh();
        count
    }

    /// How many messages there was no room for, since this was asked last.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.outbox().dropped)
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("nothing panics while it is locked")
    }
}

/// Only whether anybody is told: messages hold values of rows (I9).
impl fmt::Debug for Publisher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Publisher").field("is_on", &self.is_on).finish_non_exhaustive()
    }
}

impl Part {
    fn of(item: Item<'_>) -> Part {
        match item.reach() {
            Reach::Direct => Part::Named,
            Reach::Paged => Part::Paged,
            Reach::Scanned => Part::Patterns,
        }
    }
}

impl Outbox {
    fn weigh(&mut self) {
        self.charge.set(self.bytes + self.messages.len() * size_of::<String>());
    }
}

impl Message {
    fn new(lsn: Lsn) -> Message {
        Message { lists: [String::new(), String::new()], lsn }
    }

    fn len(&self) -> usize {
        self.lists.iter().map(String::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, list: usize, name: &[u8]) {
        let Some(list) = self.lists.get_mut(list) else { return };
        if !list.is_empty() {
            list.push(',');
        }
        match std::str::from_utf8(name) {
            // A text is JSON always.
            Ok(text) => list.push_str(&serde_json::to_string(text).unwrap_or_default()),
            Err(_) => {
                let text = BASE64_STANDARD.encode(name);
                list.push_str("{\"base64\":\"");
                list.push_str(&text);
                list.push_str("\"}");
            }
        }
    }

    fn text(self) -> String {
        let [keys, patterns] = self.lists;
        format!("{{\"keys\":[{keys}],\"patterns\":[{patterns}],\"lsn\":\"{}\"}}", self.lsn)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{MESSAGE_BYTES, Part, Publisher};
    use crate::budget::Charge;
    use crate::lsn::Lsn;
    use crate::sweep::tests::{keys, rules};

    fn publisher(bytes_max: usize) -> Publisher {
        Publisher::new(true, bytes_max, Charge::new(&Arc::default()))
    }

    fn all(publisher: &Publisher) -> Vec<serde_json::Value> {
        let next = || publisher.next().map(|text| serde_json::from_str(&text).unwrap());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_name_that_is_no_text_is_told_whole() {
        let publisher = publisher(1 << 20);
        publisher.named(&[b"a\"\n", b"\xff\x00"], Lsn(0x16_B374_0000));
        let [message] = &all(&publisher)[..] else { panic!("one message") };
        let told = r#"{"keys":["a\"\n",{"base64":"/wA="}],"patterns":[],"lsn":"16/B3740000"}"#;
        assert_eq!(*message, serde_json::from_str::<serde_json::Value>(told).unwrap());
    }

    #[test]
    fn many_names_are_told_in_several_messages_each_once_and_in_order() {
        let (publisher, rules) = (publisher(1 << 20), rules());
        let ids: Vec<String> = (0..5_000).map(|id| format!("{id:020}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        publisher.removed(&keys(&rules, "item", &ids), Part::Named, Lsn(7));
        let messages = all(&publisher);
        assert!(messages.len() > 3, "{}", messages.len());
        let told = messages.iter().flat_map(|one| one["keys"].as_array().unwrap());
        let told: Vec<&str> = told.map(|key| key.as_str().unwrap()).collect();
        assert_eq!(told.len(), 5_000);
        assert!(told.is_sorted());
        assert!(messages.iter().all(|one| one["lsn"] == "0/7"));
        assert!(messages.iter().all(|one| one.to_string().len() < MESSAGE_BYTES + 1_000));
    }

    #[test]
    fn what_there_is_no_room_for_is_told_as_patterns_and_then_not_at_all() {
        let (publisher, rules) = (publisher(300), rules());
        let ids: Vec<String> = (0..100).map(|id| format!("{id:020}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let keys = keys(&rules, "item", &ids);
        publisher.removed(&keys, Part::Named, Lsn(7));
        assert_eq!(publisher.take_dropped(), 0);
        for _ in 0..100 {
            publisher.removed(&keys, Part::Named, Lsn(7));
        }
        assert!(publisher.take_dropped() > 90);
        let messages = all(&publisher);
        assert_eq!(messages[0]["patterns"], serde_json::json!(["item:*"]));
        publisher.named(&[&[b'x'; 400]], Lsn(7));
        assert_eq!(all(&publisher)[0]["patterns"], serde_json::json!(["*"]));
    }
}
