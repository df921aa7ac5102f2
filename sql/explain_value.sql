-- A value as the stream has it: format() prints by the output function of its type, which a cast to
-- text does not always. The type is a built-in one, so that nobody's own function runs.
-- Privileges: none. Versions: 14 to 18. It reads no table.
-- $1 is the value as it is written in the question.
select format('%s', cast($1::text as {type}))
