-- The demonstration's first statement: one row, one rule, two keys.
-- Privileges: owner of the tables of schema.sql. Versions: 14 and later.
update matches set kickoff = kickoff + interval '1 hour' where id = 5
