//! Acts on the site, and the cached topics that they make stale.
//!
//! The expectation is written down from what the site shows on its pages, not from the rules: it is
//! what the rules are held against.

use super::Fixture;

/// One transaction of the site.
#[derive(Clone, Debug)]
pub(super) struct Act {
    /// A title that tells people what happens.
    pub(super) title: String,
    /// The statement, a call of a procedure in `crates/stage/sql/football/acts.sql`.
    pub(super) statement: String,
    /// Whether the transaction commits.
    pub(super) commits: bool,
    /// Everything that it touches.
    touches: Touches,
}

/// The change that a transaction makes to what pages show.
#[derive(Clone, Debug)]
enum Touches {
    /// Nothing.
    Nothing,
    /// When a match begins.
    Kickoff(i64),
    /// A match and the points of its predictions.
    Scores(i64),
    /// Every match of the clubs of these names.
    Clubs([String; 2]),
    /// The list of models.
    Models,
}

impl Act {
    /// Whether this act makes the cached `subject` of `topic` stale; `matches` holds every match as
    /// it was before and as it is after.
    pub(super) fn makes_stale(&self, topic: &str, subject: &str, matches: &[Fixture]) -> bool {
        if !self.commits {
            return false;
        }
        let touched: Vec<&Fixture> = match &self.touches {
            Touches::Nothing => return false,
            Touches::Kickoff(id) => return topic == "roundup" && subject == id.to_string(),
            Touches::Models => {
                return topic == "models" || (topic == "leaderboard" && subject == "db");
            }
            Touches::Scores(id) => matches.iter().filter(|one| one.id == *id).collect(),
            Touches::Clubs(names) => {
                let plays = |one: &&Fixture| names.contains(&one.home) || names.contains(&one.away);
                matches.iter().filter(plays).collect()
            }
        };
        let scores = matches!(self.touches, Touches::Scores(_));
        touched.iter().any(|one| match topic {
            "roundup" => one.id.to_string() == subject,
            "predictions" => scores && one.id.to_string() == subject,
            "competition" => one.competition == subject,
            "club" => one.home == subject || one.away == subject,
            "leaderboard" | "overall" | "model" => scores,
            _ => false,
        })
    }
}

/// A club whose name is a glob that would match its neighbour's name and not its own.
const AWKWARD: &str = "Bodø/Glimt [W]*";

/// The later name of that club.
const RENAMED: &str = "Bodø/Glimt Kvinner";

/// The match that [`opening`] is about.
pub(super) const POSTPONED: i64 = 5;

/// Gives the act that is shown first, in full: one UPDATE of the match [`POSTPONED`].
pub(super) fn opening() -> Act {
    let file = include_str!("../../sql/football/postpone.sql");
    let lines = file.lines().filter(|line| !line.starts_with("--"));
    let statement = lines.collect::<Vec<_>>().join("\n");
    Act { title: statement.clone(), statement, commits: true, touches: Touches::Kickoff(POSTPONED) }
}

/// The demonstration, over the season's first matches.
pub(super) fn acts(matches: &[Fixture]) -> Vec<Act> {
    let first = |name: &str| matches.iter().find(|one| one.home == name || one.away == name);
    let mut acts = Vec::new();
    acts.extend(first(AWKWARD).map(|one| settle(one, 2, 1, true)));
    acts.extend(first("Athletic Club*").map(|one| settle(one, 0, 0, true)));
    acts.extend(first("1. FC Köln").map(|one| settle(one, 1, 3, false)));
    acts.extend(first("1. FC Köln").map(|one| Act {
        title: format!("A venue that no cached page shows: {}", name(one)),
        statement: format!("call note_venue({}, 'Rhine Park')", one.id),
        commits: true,
        touches: Touches::Nothing,
    }));
    acts.push(Act {
        title: format!("A club is renamed in all its matches: {AWKWARD} is now {RENAMED}"),
        statement: format!("call rename_club('{AWKWARD}', '{RENAMED}')"),
        commits: true,
        touches: Touches::Clubs([AWKWARD.to_owned(), RENAMED.to_owned()]),
    });
    acts.push(Act {
        title: "A model is disabled: atlas-001".to_owned(),
        statement: "call disable_model('atlas-001')".to_owned(),
        commits: true,
        touches: Touches::Models,
    });
    acts.extend(first("Who? FC").map(|one| Act {
        title: format!("A match is deleted, with its predictions: {}", name(one)),
        statement: format!("call remove_match({})", one.id),
        commits: true,
        touches: Touches::Scores(one.id),
    }));
    acts
}

/// A settlement: result and all predictions in one transaction.
fn settle(one: &Fixture, home: u8, away: u8, commits: bool) -> Act {
    let how = if commits { "Settled" } else { "Settled, then rolled back" };
    Act {
        title: format!("{how}: {} ended {home}:{away}", name(one)),
        statement: format!("call settle_match({}, {home}, {away})", one.id),
        commits,
        touches: Touches::Scores(one.id),
    }
}

/// A match, for people.
fn name(one: &Fixture) -> String {
    format!("match {}, {} against {}, {}", one.id, one.home, one.away, one.competition)
}

#[cfg(test)]
mod tests {
    use super::{AWKWARD, Fixture, RENAMED, acts};

    fn season() -> Vec<Fixture> {
        let clubs = [(1, "n", AWKWARD, "Molde"), (2, "s", "Athletic Club*", "Getafe")];
        let more = [(3, "g", "1. FC Köln", "VfB"), (4, "e", "Arsenal", "Who? FC")];
        let fixture = |&(id, competition, home, away): &(i64, &str, &str, &str)| Fixture {
            id,
            competition: competition.to_owned(),
            home: home.to_owned(),
            away: away.to_owned(),
        };
        clubs.iter().chain(&more).map(fixture).collect()
    }

    #[test]
    fn a_settlement_makes_its_match_its_clubs_and_every_standing_stale_and_no_other() {
        let season = season();
        let acts = acts(&season);
        let stale = |topic, subject| acts[0].makes_stale(topic, subject, &season);
        for (topic, subject) in [
            ("predictions", "1"),
            ("roundup", "1"),
            ("competition", "n"),
            ("club", AWKWARD),
            ("club", "Molde"),
            ("leaderboard", "db"),
            ("leaderboard", "stats"),
            ("overall", ""),
            ("model", ""),
        ] {
            assert!(stale(topic, subject), "{topic} {subject}");
        }
        for (topic, subject) in [
            ("predictions", "2"),
            ("roundup", "2"),
            ("competition", "s"),
            ("club", "Getafe"),
            ("models", ""),
            ("other", ""),
        ] {
            assert!(!stale(topic, subject), "{topic} {subject}");
        }
    }

    #[test]
    fn what_is_rolled_back_or_not_shown_makes_nothing_stale() {
        let season = season();
        let acts = acts(&season);
        assert_eq!(acts.len(), 7);
        for act in &acts[2..4] {
            for (topic, subject) in [("predictions", "3"), ("club", "1. FC Köln"), ("overall", "")]
            {
                assert!(!act.makes_stale(topic, subject, &season), "{}", act.title);
            }
        }
    }

    #[test]
    fn a_rename_makes_both_names_stale_but_no_standing() {
        let mut season = season();
        let acts = acts(&season);
        let renamed = Fixture { home: RENAMED.to_owned(), ..season[0].clone() };
        season.push(renamed);
        let stale = |topic, subject| acts[4].makes_stale(topic, subject, &season);
        assert!(stale("club", AWKWARD) && stale("club", RENAMED) && stale("club", "Molde"));
        assert!(stale("roundup", "1") && !stale("leaderboard", "db") && !stale("club", "VfB"));
    }
}
