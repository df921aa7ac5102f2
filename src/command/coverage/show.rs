//! The words of `walsweep coverage`.

use std::fmt;

use super::{Coverage, Known, Reach};
use crate::words::{counted, grouped};

/// Families that are shown to a person.
const SHOWN_MAX: usize = 30;

impl fmt::Display for Coverage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coverage { title, prefix, keys, templates, unreached, families, more_families, .. } =
            self;
        write!(formatter, "{title}: {}", counted(*keys, "key"))?;
        match prefix.as_str() {
            "" => writeln!(formatter)?,
            prefix => writeln!(formatter, " whose names begin with `{prefix}`, told without it")?,
        }
        self.passes.iter().try_for_each(|pass| writeln!(formatter, "{pass}"))?;
        writeln!(formatter, "\nreached by rules")?;
        let most = templates.iter().map(|reach| reach.keys).chain([*unreached]).max();
        let digits = grouped(most.unwrap_or_default()).len().max(4);
        let longest = templates.iter().map(|reach| reach.rule.chars().count()).max();
        let longest = longest.unwrap_or_default();
        for Reach { rule, template, keys } in templates {
            let none = if *keys == 0 { "  no such key now" } else { "" };
            let keys = grouped(*keys);
            writeln!(formatter, "{keys:>digits$}  {rule:<longest$}  {template}{none}")?;
        }
        if *unreached == 0 {
            return writeln!(formatter, "\nevery key is reached by a rule");
        }
        writeln!(formatter, "\nreached by no rule: {}", counted(*unreached, "key"))?;
        for Known { family, keys } in families.iter().take(SHOWN_MAX) {
            writeln!(formatter, "{:>digits$}  {family}", grouped(*keys))?;
        }
        let more = families.len().saturating_sub(SHOWN_MAX) + more_families;
        if more > 0 {
            writeln!(formatter, "and {more} more kinds of keys; `--json` lists more of them")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Coverage, Known, Reach};

    #[test]
    fn it_says_what_rules_reach_and_what_none_does() {
        let reach = |rule: &str, template: &str, keys| Reach {
            rule: rule.to_owned(),
            template: template.to_owned(),
            keys,
        };
        let family = |family: &str, keys| Known { family: family.to_owned(), keys };
        let mut coverage = Coverage {
            target: "redis".to_owned(),
            title: "redis".to_owned(),
            prefix: String::new(),
            keys: 1_234_567,
            passes: vec!["one pass over 1 234 567 keys costs this redis about 0.6 s".to_owned()],
            templates: vec![reach("lists", "list:{id}:*", 1_200_000), reach("a", "a:{b}", 0)],
            unreached: 34_567,
            families: (0..32).map(|at| family(&format!("session{at}:*"), 1_000)).collect(),
            more_families: 3,
        };
        let shown = coverage.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[..9],
            [
                "redis: 1 234 567 keys",
                "one pass over 1 234 567 keys costs this redis about 0.6 s",
                "",
                "reached by rules",
                "1 200 000  lists  list:{id}:*",
                "        0  a      a:{b}  no such key now",
                "",
                "reached by no rule: 34 567 keys",
                "    1 000  session0:*",
            ]
        );
        assert_eq!(*lines.last().unwrap(), "and 5 more kinds of keys; `--json` lists more of them");
        coverage.prefix = "shop:".to_owned();
        let first = "redis: 1 234 567 keys whose names begin with `shop:`, told without it";
        assert_eq!(coverage.to_string().lines().next().unwrap(), first);
        coverage.unreached = 0;
        assert!(coverage.to_string().ends_with("\n\nevery key is reached by a rule\n"));
    }
}
