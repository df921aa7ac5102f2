-- A column of a lookup's row, as a column of the stream stands in keys: format() prints by the
-- type's own output function, which a cast to text does not always (inet); of a boolean that is a
-- letter, and the cast says `true` or `false`. Of a large value only the beginning is sent, one
-- letter more than are kept: the key of such a row is not known. Privileges: none.
-- Versions: 14 and later.
case when num_nulls(found.{column}) > 0 then null
     when format('%s', found.{column}) in ('t', 'f') then found.{column}::text
     else left(format('%s', found.{column}), 65537) end
