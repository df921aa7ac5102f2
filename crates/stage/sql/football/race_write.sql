-- Changes what the page of a match shows. Privileges: update on the tables of schema.sql.
-- Versions: 14 and later.
update matches set kickoff = kickoff + interval '1 minute' where id = $1
