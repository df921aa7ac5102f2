//! Rights to look into keys, for `fields` and `tags`, and to tell of removals, for `publish`.

use redis::{Cmd, cmd};

use super::redis_names::word;
use crate::config::{Located, Redis, Rule, Target};

/// A message that names nothing: who listens has nothing to do.
const NOTHING: &str = "{\"keys\":[],\"patterns\":[],\"lsn\":\"0/0\"}";

/// The advice about keys that no rule tells: a set may name any.
const MEMBERS: &str = "; no rule tells which keys the sets of `tags` name: give `~` for them, too";

/// The rights that rules need beside those to remove keys.
#[derive(Clone, Debug)]
pub(super) struct Inside {
    has_fields: bool,
    has_tags: bool,
    channel: Option<String>,
}

impl Inside {
    pub(super) fn of(target: &Target) -> Inside {
        let Redis { publish, .. } = &target.redis;
        Inside {
            has_fields: target.rules.iter().any(|rule| !rule.fields.is_empty()),
            has_tags: target.rules.iter().any(|rule| !rule.tags.is_empty()),
            channel: publish.clone(),
        }
    }

    /// Whether sets name keys.
    pub(super) fn has_tags(&self) -> bool {
        self.has_tags
    }

    /// Advice on the line with the right to every key that a rule tells, where that is not all.
    pub(super) fn members(&self) -> &'static str {
        if self.has_tags { MEMBERS } else { "" }
    }

    /// The rights, as `ACL SETUSER` has them; each with a space before it.
    pub(super) fn rights(&self) -> String {
        let mut rights = String::new();
        for (is_needed, more) in [
            (self.has_fields, " +hdel +hscan"),
            (self.has_tags, " +type +exists +sscan +zscan +srem +zrem"),
            (self.channel.is_some(), " +publish"),
        ] {
            rights.push_str(if is_needed { more } else { "" });
        }
        rights
    }

    /// The right to the channel, as `ACL SETUSER` has it, with a space before it; nothing where
    /// nobody is told. Redis takes it from no user who has the right to all channels, as new users
    /// of 6.2 have.
    pub(super) fn channel(&self) -> String {
        let channel = self.channel.iter().map(|one| format!(" {}", word(&channel_right(one))));
        channel.collect()
    }

    /// Commands to try, on a key that is not there and begins so.
    pub(super) fn commands(&self, watermark: &str) -> Vec<(&'static str, Cmd)> {
        let key = format!("{watermark}:check:inside");
        let on_key = |name: &str, argument: Option<&str>| cmd(name).arg(&key).arg(argument).take();
        let mut commands = Vec::new();
        if self.has_fields {
            commands.push(("hdel", on_key("HDEL", Some("f"))));
            commands.push(("hscan", on_key("HSCAN", Some("0"))));
        }
        if self.has_tags {
            commands.push(("type", on_key("TYPE", None)));
            commands.push(("exists", on_key("EXISTS", None)));
            commands.push(("sscan", on_key("SSCAN", Some("0"))));
            commands.push(("zscan", on_key("ZSCAN", Some("0"))));
            commands.push(("srem", on_key("SREM", Some("m"))));
            commands.push(("zrem", on_key("ZREM", Some("m"))));
        }
        if let Some(channel) = &self.channel {
            commands.push(("publish", cmd("PUBLISH").arg(channel).arg(NOTHING).take()));
        }
        commands
    }

    /// The right whose absence is why `PUBLISH` was denied, if that is the channel's.
    pub(super) fn channel_right(&self, denied: &str) -> Option<String> {
        let channel = self.channel.as_ref().filter(|_| denied.contains("channel"));
        channel.map(|channel| channel_right(channel))
    }
}

/// The right to a channel: in an ACL its name is a pattern.
fn channel_right(channel: &str) -> String {
    let escaped = channel.chars().flat_map(|one| match one {
        space if space.is_whitespace() => vec!['?'],
        syntax if r"\*?[]".contains(syntax) => vec!['\\', syntax],
        plain => vec![plain],
    });
    let escaped: String = escaped.collect();
    format!("&{escaped}")
}

/// The templates of all keys of a rule that it removes or looks into.
pub(super) fn templates(rule: &Rule) -> impl Iterator<Item = &Located<String>> {
    let hashes = rule.fields.iter().map(|entry| &entry.key);
    rule.keys.iter().chain(&rule.tags).chain(hashes)
}

#[cfg(test)]
mod tests {
    use super::Inside;

    #[test]
    fn only_what_is_used_needs_a_right() {
        let inside = |has_fields, has_tags, channel: Option<&str>| Inside {
            has_fields,
            has_tags,
            channel: channel.map(str::to_owned),
        };
        assert_eq!(inside(false, false, None).rights(), "");
        assert_eq!(inside(true, false, None).rights(), " +hdel +hscan");
        assert_eq!(inside(false, false, Some("a*b c")).rights(), " +publish");
        assert_eq!(inside(false, false, Some("a*b c")).channel(), r" '&a\*b?c'");
        assert_eq!(inside(true, true, None).channel(), "");
        assert!(inside(false, true, None).rights().contains("+zscan"));
        assert_eq!(inside(true, false, Some("c")).members(), "");
        assert!(inside(false, true, None).members().contains("`~`"));
        assert_eq!(inside(false, false, None).commands("w").len(), 0);
        assert_eq!(inside(true, true, Some("c")).commands("w").len(), 9);
    }
}
