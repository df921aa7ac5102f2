-- A column of a lookup's row, as a column of the stream stands in keys: format() prints by the
-- type's own output function, which a cast to text does not always (inet); of a boolean that is a
-- letter, and the cast says `true` or `false`. Of a large value only the beginning is sent, one
-- letter more than are kept: the key of such a row is not known. Privileges: none.
-- Versions: 14 and later.
-- Every name of ours is qualified: the session has the role's own view (sql/as_role.sql).
case when pg_catalog.num_nulls(found.{column}) operator(pg_catalog.>) 0 then null
     when pg_catalog.format('%s', found.{column}) operator(pg_catalog.=) any
          (array['t', 'f']::pg_catalog.text[]) then found.{column}::pg_catalog.text
     else pg_catalog.left(pg_catalog.format('%s', found.{column}), 65537) end
