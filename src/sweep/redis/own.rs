//! Keys that walsweep keeps for itself: no pattern of a rule takes them, whatever it says. Where
//! two targets are one database, those of the other stand among the keys of this one.

use super::prefix::Prefix;
use crate::config;
use crate::sweep::proof::evidence::key_name;

/// The names of the watermarks of all targets; what belongs to one has its name, a `:` and more.
#[derive(Clone, Debug)]
pub(super) struct Own(Vec<Vec<u8>>);

impl Own {
    /// Those of every target of the configuration that this one is of.
    pub(super) fn of(redis: &config::Redis, slot: &str) -> Own {
        let names = redis.prefixes.iter().map(|prefix| key_name(prefix, slot).into_bytes());
        Own(names.collect())
    }

    /// Own keys as the rules of a target with this prefix know them.
    pub(super) fn within(&self, prefix: &Prefix) -> Own {
        Own(self.0.iter().filter_map(|name| prefix.strip(name)).map(<[u8]>::to_vec).collect())
    }

    /// Whether a key is one of them.
    pub(super) fn has(&self, key: &[u8]) -> bool {
        let rest = self.0.iter().filter_map(|name| key.strip_prefix(name.as_slice()));
        rest.into_iter().any(|rest| rest.is_empty() || rest.starts_with(b":"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Own, Prefix};
    use crate::config::Redis;

    #[test]
    fn own_keys_of_each_target_are_known_and_nobody_elses() {
        let prefixes = ["", "a:", "a:b:"].map(str::to_owned).to_vec();
        let redis = Redis { prefixes, prefix: "a:".to_owned(), ..Redis::at("redis://h") };
        let own = Own::of(&redis, "s");
        for key in ["walsweep:s", "a:walsweep:s", "a:b:walsweep:s:rules:1", "a:walsweep:s:made"] {
            assert!(own.has(key.as_bytes()), "{key}");
        }
        for key in ["walsweep:s2", "b:walsweep:s", "a:walsweep", "a:walsweep:", "xwalsweep:s"] {
            assert!(!own.has(key.as_bytes()), "{key}");
        }
        let within = own.within(&Prefix::of(&redis));
        assert!(within.has(b"walsweep:s:removals") && within.has(b"b:walsweep:s"));
        assert!(!within.has(b"a:walsweep:s"), "that is another key there");
    }
}
