-- All matches, in the order of their kickoff. Privileges: select on the tables of schema.sql.
-- Versions: 14 and later.
select id, competition_id, home_team, away_team from matches order by matchday, id
