-- The tables of a football prediction site: language models predict results, a worker settles
-- matches. Privileges: create in the current schema. Versions: 14 and later.

create table competitions (
    id      text primary key check (id ~ '^[a-z0-9-]+$'),
    name    text not null unique,
    country text not null
);

create table matches (
    id             bigint generated always as identity primary key,
    competition_id text not null references competitions (id),
    matchday       integer not null check (matchday > 0),
    slug           text not null unique check (slug ~ '^[a-z0-9-]+$'),
    home_team      text not null check (home_team <> ''),
    away_team      text not null check (away_team <> ''),
    kickoff        timestamptz not null,
    venue          text,
    status         text not null default 'scheduled'
                   check (status in ('scheduled', 'live', 'finished', 'postponed')),
    home_goals     smallint check (home_goals >= 0),
    away_goals     smallint check (away_goals >= 0),
    settled_at     timestamptz,
    check (home_team <> away_team),
    check ((home_goals is null) = (away_goals is null)),
    check (status <> 'finished' or (home_goals is not null and settled_at is not null))
);
create index on matches (competition_id, matchday);
create index on matches (home_team);
create index on matches (away_team);
create index on matches (kickoff) where status = 'scheduled';

create table models (
    id       integer generated always as identity primary key,
    name     text not null unique,
    provider text not null,
    enabled  boolean not null default true
);

create table predictions (
    id                bigint generated always as identity primary key,
    match_id          bigint not null references matches (id) on delete cascade,
    model_id          integer not null references models (id),
    predicted_home    smallint not null check (predicted_home >= 0),
    predicted_away    smallint not null check (predicted_away >= 0),
    reasoning         text not null default '',
    status            text not null default 'pending' check (status in ('pending', 'scored')),
    tendency_points   smallint,
    difference_points smallint,
    exact_points      smallint,
    total_points      smallint,
    unique (match_id, model_id),
    check ((status = 'scored') = (total_points is not null)),
    check (total_points = tendency_points + difference_points + exact_points)
);
create index on predictions (model_id, status);

-- Cache keys carry a match's teams, competition and slug, and a prediction's match. Whoever removes
-- keys after the fact needs those of the row that was, too; and only with the whole old row can an
-- update that changes nothing of interest be told from one that does.
alter table matches replica identity full;
alter table models replica identity full;
alter table predictions replica identity full;

create materialized view model_stats as
select m.id as model_id, m.name, m.provider,
       count(p.id) as scored_count,
       coalesce(sum(p.total_points), 0) as points,
       count(p.id) filter (where p.exact_points > 0) as exact_count,
       round(avg(p.total_points), 3) as points_per_match
from models m
left join predictions p on p.model_id = m.id and p.status = 'scored'
where m.enabled
group by m.id;
create unique index on model_stats (model_id);

create materialized view competition_stats as
select c.id as competition_id, c.name,
       count(m.id) as finished_count,
       coalesce(sum(m.home_goals + m.away_goals), 0) as goals,
       (select round(avg(p.total_points), 3)
        from predictions p join matches s on s.id = p.match_id
        where s.competition_id = c.id and p.status = 'scored') as points_per_prediction
from competitions c
left join matches m on m.competition_id = c.id and m.status = 'finished'
group by c.id;
create unique index on competition_stats (competition_id);

create materialized view club_stats as
select t.club, count(*) as finished_count,
       sum(t.goals_for) as goals_for, sum(t.goals_against) as goals_against,
       round(avg(p.total_points), 3) as points_per_prediction
from (
    select id, home_team as club, home_goals as goals_for, away_goals as goals_against
    from matches where status = 'finished'
    union all
    select id, away_team, away_goals, home_goals from matches where status = 'finished'
) t
left join lateral (
    select avg(total_points) as total_points from predictions
    where match_id = t.id and status = 'scored'
) p on true
group by t.club;
create unique index on club_stats (club);
