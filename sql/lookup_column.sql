-- A column of a lookup's row, as a column of the stream stands in keys: format() prints by the
-- type's own output function, which a cast to text does not always (inet); of a boolean that is a
-- letter, and the cast says `true` or `false`. Privileges: none. Versions: 14 and later.
case when num_nulls(found.{column}) > 0 then null
     when format('%s', found.{column}) in ('t', 'f') then found.{column}::text
     else format('%s', found.{column}) end
