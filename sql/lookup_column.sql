-- A column of a lookup's row, as the stream would send it: format() prints by the type's own output
-- function, a cast to text does not always (boolean, inet). Privileges: none.
-- Versions: 14 and later.
case when num_nulls(found.{column}) = 0 then format('%s', found.{column}) end
