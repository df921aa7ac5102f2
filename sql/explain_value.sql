-- A value as the stream has it, or the refusal of one that no row can hold: it is read by the input
-- function of its type with the length that the column has, as the server reads a value of a row.
-- An explicit cast would cut what is too long. format() prints by the output function, which a cast
-- to text does not always. The type is a built-in one or an enum, so that nobody's own function
-- runs. Privileges: none, but USAGE on an enum's schema. Versions: 14 to 18. It reads no table.
-- $1 is the value as it is written in the question.
select format('%s', read.value)
  from jsonb_to_record(jsonb_build_object('value', $1::text)) as read (value {type})
