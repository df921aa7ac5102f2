-- What the page of a match shows. Privileges: select on the tables of schema.sql.
-- Versions: 14 and later.
select kickoff::text from matches where id = $1
