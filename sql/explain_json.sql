-- The same as sql/explain_value.sql for `json` and `jsonb`, which would take the text for a string.
-- Privileges: none. Versions: 14 to 18. It reads no table.
-- $1 is the value as it is written in the question.
select format('%s', cast($1::text as {type}))
