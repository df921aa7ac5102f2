//! The probe: a message of walsweep's own lets one key go that proves the way of all others.
//!
//! `walsweep probe` puts a key into every target, its *canary*, and commits a message that names
//! it. The canary goes as the key of a row does: when its transaction is visible, and from every
//! target.
//!
//! Whoever may connect to the database may write such a message. So it names no key: it holds a
//! nonce, [`NONCE_DIGITS`] hex digits, and the key is made of that alone. No rule gives it, so that
//! no sweep, no fingerprint and no command that tells of rules knows of it.

use super::compile;
use super::label::{RuleId, TemplateId};
use super::set::KeySet;
use super::signal::{Malformed, Signal};
use super::{Bound, Rules};
use crate::config::{OWN_PREFIX, Targets};
use crate::decode::LogicalMessage;

/// The word behind [`OWN_PREFIX`] in the prefix of the message. Its content is the nonce.
const WORD: &str = "probe";

/// So many hex digits in lower case are a nonce: 128 bits, which nobody guesses.
pub const NONCE_DIGITS: usize = 32;

/// The canaries that [`Rules`] know.
#[derive(Clone, Debug)]
pub(super) struct Canaries {
    /// The name of walsweep's own key, which those of canaries begin with.
    own: Box<str>,
    template: TemplateId,
}

/// The name of the canary of a nonce, beside walsweep's own key `own`; without a target's prefix,
/// if `own` is.
#[must_use]
pub fn canary(own: &str, nonce: &str) -> String {
    format!("{own}:probe:{nonce}")
}

/// Whether a text is a nonce. Nothing else may become part of a name.
fn is_nonce(text: &[u8]) -> bool {
    text.len() == NONCE_DIGITS && text.iter().all(|one| matches!(one, b'0'..=b'9' | b'a'..=b'f'))
}

impl Rules {
    /// Lets probes remove their canaries from these targets; `own` is the name of walsweep's own
    /// key, without a prefix.
    #[must_use]
    pub fn with_canaries(self, own: &str, targets: Targets) -> Rules {
        // At its limit a set holds this name in the place of its canaries, which no key has. A
        // pattern would cost a pass, and passes spare walsweep's own keys.
        let whole = format!("{own}:probe");
        let (templates, template) = compile::with_canary(&self.rules, whole.as_bytes(), targets);
        Rules { templates, canaries: Some(Canaries { own: own.into(), template }), ..self }
    }
}

impl Bound {
    /// Adds the canary that a message names; `None` if it is no message of a probe.
    pub(super) fn probe(&self, message: &LogicalMessage, keys: &mut KeySet) -> Option<Signal> {
        let canaries = self.rules().canaries.as_ref()?;
        if message.prefix.strip_prefix(OWN_PREFIX) != Some(WORD) {
            return None;
        }
        if !message.transactional {
            return Some(Signal::Malformed(Malformed::NotTransactional));
        }
        let nonce = message.content.as_deref().filter(|content| is_nonce(content));
        let Some(nonce) = nonce.and_then(|nonce| std::str::from_utf8(nonce).ok()) else {
            return Some(Signal::Malformed(Malformed::NotCovered));
        };
        // A probe commits one. More are somebody's who wants to make work of them.
        if keys.has_of(canaries.template) {
            return Some(Signal::Malformed(Malformed::NotCovered));
        }
        keys.count_match(RuleId::PROBE);
        keys.add_key(canaries.template, canary(&canaries.own, nonce).as_bytes());
        Some(Signal::Probe)
    }
}

#[cfg(test)]
mod tests {
    use super::canary;
    use crate::config::{Rule, TargetId, Targets};
    use crate::decode::LogicalMessage;
    use crate::keys::{Binding, Bound, KeySet, Malformed, RuleId, Rules, Signal};
    use crate::lsn::Lsn;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    fn rules() -> Rules {
        let rule = Rule::for_tests("item", &["item:{id}"]);
        let (rules, all) = (Rules::compile(&[rule]).unwrap(), Targets::ALL);
        rules.with_canaries("walsweep:s", all)
    }

    fn told(bound: &Bound, content: Option<&[u8]>, transactional: bool) -> (Signal, KeySet) {
        let mut keys = bound.key_set();
        let content = content.map(|content| content.to_vec().into());
        let prefix = "walsweep.probe".into();
        let message = LogicalMessage { transactional, lsn: Lsn(1), prefix, content };
        (bound.signal(&message, &mut keys), keys)
    }

    #[test]
    fn a_probe_removes_its_canary_from_every_target() {
        let bound = rules().bind(Binding::default());
        let (signal, keys) = told(&bound, Some(NONCE.as_bytes()), true);
        assert_eq!(signal, Signal::Probe);
        for target in TargetId::first(2) {
            let keys = keys.of_target(target);
            let exact: Vec<_> = keys.exact().collect();
            let name = canary("walsweep:s", NONCE);
            assert_eq!(exact, [(RuleId::PROBE, name.as_bytes())]);
            assert_eq!(name, format!("walsweep:s:probe:{NONCE}"));
        }
        assert_eq!(keys.patterns_len() + keys.items_len(), 0);
    }

    /// Whoever may write messages may not remove a key by one.
    #[test]
    fn what_is_no_nonce_removes_nothing() {
        let bound = rules().bind(Binding::default());
        let upper = NONCE.to_uppercase();
        let (short, long) = (&NONCE[1..], format!("{NONCE}0"));
        let star = format!("{}*", &NONCE[1..]);
        for content in ["", "*", "item:1", "walsweep:s", &upper, short, &long, &star] {
            let (signal, keys) = told(&bound, Some(content.as_bytes()), true);
            assert_eq!(signal, Signal::Malformed(Malformed::NotCovered), "{content}");
            assert!(keys.is_empty(), "{content}");
        }
        let (signal, keys) = told(&bound, None, true);
        assert_eq!(signal, Signal::Malformed(Malformed::NotCovered), "too large to be kept");
        assert!(keys.is_empty());
        let (signal, keys) = told(&bound, Some(NONCE.as_bytes()), false);
        assert_eq!(signal, Signal::Malformed(Malformed::NotTransactional));
        assert!(keys.is_empty());
    }

    /// A sweep that somebody could cause by many messages would cost Redis a pass.
    #[test]
    fn canaries_at_their_limit_become_one_key() {
        let bound = rules().bind(Binding::default());
        let (_, mut keys) = told(&bound, Some(NONCE.as_bytes()), true);
        keys.collapse();
        let exact: Vec<_> = keys.exact().map(|(_, key)| key).collect();
        assert_eq!((exact, keys.has_patterns()), (vec![&b"walsweep:s:probe"[..]], false));
    }

    /// Each would cost a name in a removal, and memory wherever keys wait.
    #[test]
    fn a_transaction_has_one_canary() {
        let bound = rules().bind(Binding::default());
        let (_, mut keys) = told(&bound, Some(NONCE.as_bytes()), true);
        let other = NONCE.replace('0', "1");
        let content = Some(other.into_bytes().into());
        let prefix = "walsweep.probe".into();
        let message = LogicalMessage { transactional: true, lsn: Lsn(1), prefix, content };
        assert_eq!(bound.signal(&message, &mut keys), Signal::Malformed(Malformed::NotCovered));
        assert_eq!(keys.exact().count(), 1);
    }

    #[test]
    fn the_rules_know_nothing_of_it() {
        let rules = rules();
        let without = Rules::compile(&[Rule::for_tests("item", &["item:{id}"])]).unwrap();
        assert_eq!(rules.names(), without.names());
        assert_eq!(rules.fingerprint(), without.fingerprint());
        let shown = |rules: &Rules| rules.everything().shown();
        assert_eq!(shown(&rules), shown(&without));
        assert!(rules.need_messages() && !without.need_messages() && !rules.have_messages());
        assert_eq!(RuleId::PROBE.name_in(rules.names()), "walsweep.probe");
        assert_eq!(RuleId(0).name_in(rules.names()), "item");
    }
}
