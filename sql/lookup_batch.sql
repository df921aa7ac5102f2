-- The rows of a lookup for many parameters at once, each row with the place of its parameters: one
-- array for each of them, and sql/lookup.sql with their columns in the place of `$1`, `$2` and so
-- on. Privileges: whatever the query of the configuration needs. Versions: 14 and later.
-- Every name of ours is qualified: the session has the role's own view (sql/as_role.sql). Names
-- within the query mean its own tables first, so that none of ours is taken for one of them; and a
-- name that they do not have means none of ours, which are such as nobody gives.
select "walsweep asked"."walsweep asked place", answer.*
  from rows from ({arrays}) with ordinality as "walsweep asked" ({names}, "walsweep asked place")
 cross join lateral (
{statement}
       ) as answer
