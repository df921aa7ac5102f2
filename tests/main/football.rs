//! The football site's own invalidation as an oracle: after its transactions walsweep has removed
//! at least what the site's three functions would have, and nothing of matches, clubs and
//! competitions that were not touched.

use std::collections::HashSet;

use redis::Pipeline;

use crate::support::{Bed, Settings, Sidecar};

const CONFIG: &str = include_str!("../../config.toml");

const SCHEMA: [&str; 3] = [
    include_str!("../../crates/stage/sql/football/schema.sql"),
    include_str!("../../crates/stage/sql/football/season.sql"),
    include_str!("../../crates/stage/sql/football/acts.sql"),
];

/// The site's lookups and rules, as they stand in the configuration that is shipped.
fn rules() -> &'static str {
    let begin = ["\n[lookup.", "\n[[rule]]"].iter().filter_map(|head| CONFIG.find(head)).min();
    &CONFIG[begin.unwrap()..]
}

/// A key of the site's cache and what its value is about.
struct Cached {
    topic: String,
    subject: String,
    key: String,
}

/// A match, as the site's functions are told of it.
struct Match {
    id: i64,
    slug: String,
    competition: String,
    home: String,
    away: String,
}

/// A glob of the site's, cut at its stars: no club's name is syntax here.
type Glob = Vec<String>;

fn glob(pieces: &[&str]) -> Glob {
    pieces.iter().map(|&piece| piece.to_owned()).collect()
}

fn matches(glob: &Glob, key: &str) -> bool {
    let [first, between @ .., last] = glob.as_slice() else { return glob == &[key] };
    let Some(mut rest) = key.strip_prefix(first.as_str()) else { return false };
    for piece in between {
        let Some(at) = rest.find(piece.as_str()) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last.as_str())
}

/// `invalidateMatchCaches`: the match's own pages, and every table that adds predictions up.
fn match_caches(one: &Match) -> Vec<Glob> {
    let mut globs = vec![glob(&[&format!("db:predictions:{}", one.id)])];
    globs.extend(["db:leaderboard:", "stats:leaderboard:"].map(|head| glob(&[head, ""])));
    globs.extend(["db:stats:overall", "db:models:top-performing"].map(|key| glob(&[key])));
    globs.push(glob(&["db:model:", ":stats"]));
    globs
}

/// `invalidateStatsCache`: statistics over all, by model, by competition, by both clubs.
fn stats_cache(one: &Match) -> Vec<Glob> {
    let mut globs = vec![glob(&["stats:overall:", ""]), glob(&["stats:model:", ""])];
    globs.push(glob(&["stats:competition:", &format!("comp:{}", one.competition), ""]));
    for club in [&one.home, &one.away] {
        globs.push(glob(&["stats:club:", &format!("club:{club}"), ""]));
    }
    globs
}

/// The round-up of a match, which tells its result.
fn roundups(one: &Match) -> Vec<Glob> {
    let keys = [format!("roundup:{}", one.id), format!("roundup:slug:{}", one.slug)];
    keys.map(|key| glob(&[&key])).into()
}

/// Gives the globs of keys that are removed when a model is enabled or disabled.
fn model_counts() -> Vec<Glob> {
    let mut globs = ["db:models:active", "db:models:count:active"].map(|key| glob(&[key])).to_vec();
    globs.push(glob(&["db:leaderboard:", ""]));
    globs
}

/// The site with everything cached, walsweep beside it.
struct Site {
    bed: Bed,
    cached: Vec<Cached>,
    matches: Vec<Match>,
    _sidecar: Sidecar,
}

impl Site {
    async fn new() -> Site {
        let bed = Bed::new(&[]).await;
        for script in SCHEMA {
            bed.sql.run(script).await;
        }
        bed.sql.run("call generate_season()").await;
        let query = include_str!("../../crates/stage/sql/football/cached.sql");
        let rows = bed.sql.client().query(query, &[]).await.unwrap();
        let cached = rows.iter().map(|row| Cached {
            topic: row.get(0),
            subject: row.get(1),
            key: row.get(2),
        });
        let cached = cached.collect();
        let query =
            "select id, slug, competition_id, home_team, away_team from matches order by id";
        let rows = bed.sql.client().query(query, &[]).await.unwrap();
        let matches = rows.iter().map(|row| Match {
            id: row.get(0),
            slug: row.get(1),
            competition: row.get(2),
            home: row.get(3),
            away: row.get(4),
        });
        let matches = matches.collect();
        let settings = Settings::new(&bed.postgres, &bed.redis, rules());
        let sidecar = Sidecar::set_up(settings).await;
        Site { bed, cached, matches, _sidecar: sidecar }
    }

    /// The match at this place of the season.
    fn fixture(&self, at: usize) -> &Match {
        &self.matches[at]
    }

    async fn fill(&self) {
        for some in self.cached.chunks(500) {
            let mut command = redis::cmd("MSET");
            some.iter().for_each(|cached| {
                command.arg(&cached.key).arg("cached");
            });
            command.exec_async(&mut self.bed.cache.clone()).await.unwrap();
        }
    }

    async fn left(&self) -> HashSet<&str> {
        let mut pipeline = Pipeline::new();
        self.cached.iter().for_each(|cached| {
            pipeline.exists(&cached.key);
        });
        let exist: Vec<bool> = pipeline.query_async(&mut self.bed.cache.clone()).await.unwrap();
        let left = self.cached.iter().zip(exist).filter(|(_, exists)| *exists);
        left.map(|(cached, _)| cached.key.as_str()).collect()
    }

    /// Runs a transaction on a full cache: what `oracle` matches must go; what is about none of the
    /// `touched` matches must stay.
    async fn check(&self, transaction: &str, oracle: &[Glob], touched: &[&Match]) {
        self.fill().await;
        self.bed.sql.run(transaction).await;
        self.bed.settled().await;
        let left = self.left().await;
        let (mut wanted, mut spared) = (0, 0);
        for cached in &self.cached {
            let key = cached.key.as_str();
            if oracle.iter().any(|glob| matches(glob, key)) {
                assert!(!left.contains(key), "`{key}` stayed after: {transaction}");
                wanted += 1;
            } else if is_untouched(cached, touched) {
                assert!(left.contains(key), "`{key}` went after: {transaction}");
                spared += 1;
            }
        }
        assert!(oracle.is_empty() || wanted >= 3, "{wanted} keys were asked for");
        assert!(spared > 5_000, "{spared} keys were to be spared");
    }
}

/// Whether a key is about a match, a club or a competition that is none of these; or about nothing
/// that the site's transactions change. The site's own globs end in a star, so that a name takes
/// those that begin with it along.
fn is_untouched(cached: &Cached, touched: &[&Match]) -> bool {
    let subject = cached.subject.as_str();
    match cached.topic.as_str() {
        "predictions" | "roundup" => touched.iter().all(|one| one.id.to_string() != subject),
        "club" => touched
            .iter()
            .all(|one| !subject.starts_with(&one.home) && !subject.starts_with(&one.away)),
        "competition" => touched.iter().all(|one| !subject.starts_with(&one.competition)),
        "other" => true,
        _ => touched.is_empty() && !matches!(cached.topic.as_str(), "models" | "leaderboard"),
    }
}

/// Scores a match's predictions and touches no other table.
fn score(one: &Match) -> String {
    format!(
        "update predictions set status = 'scored', tendency_points = 2, difference_points = 0,
             exact_points = 0, total_points = 2 where match_id = {}",
        one.id
    )
}

#[tokio::test]
async fn a_settlement_removes_what_the_sites_own_functions_would() {
    let site = Site::new().await;
    for at in [0, 7, 40] {
        let one = site.fixture(at);
        let oracle = [match_caches(one), stats_cache(one), roundups(one)].concat();
        site.check(&format!("call settle_match({}, 2, 1)", one.id), &oracle, &[one]).await;
    }
}

/// The worker may score in a transaction of its own: only the lookup knows clubs and competition.
#[tokio::test]
async fn scored_predictions_alone_remove_their_clubs_and_competition() {
    let site = Site::new().await;
    let (one, other, third) = (site.fixture(1), site.fixture(9), site.fixture(21));
    let oracle = [match_caches(one), stats_cache(one)].concat();
    site.check(&score(one), &oracle, &[one]).await;
    let both = format!("begin; {}; {}; commit", score(other), score(third));
    let oracle =
        [match_caches(other), stats_cache(other), match_caches(third), stats_cache(third)].concat();
    site.check(&both, &oracle, &[other, third]).await;
}

#[tokio::test]
async fn what_is_rolled_back_and_what_no_page_shows_spares_everything_else() {
    let site = Site::new().await;
    let (one, other) = (site.fixture(2), site.fixture(11));
    let half =
        format!("begin; {}; savepoint s; {}; rollback to s; commit", score(one), score(other));
    let oracle = [match_caches(one), stats_cache(one)].concat();
    site.check(&half, &oracle, &[one]).await;
    site.check(&format!("call note_venue({}, 'Elsewhere')", other.id), &[], &[]).await;
    site.check("call disable_model('atlas-001')", &model_counts(), &[]).await;
    // Its predictions go with it, and no lookup finds it: they were not scored, so none is asked.
    let oracle = [match_caches(other), roundups(other)].concat();
    site.check(&format!("call remove_match({})", other.id), &oracle, &[other]).await;
}
