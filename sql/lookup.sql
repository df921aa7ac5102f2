-- The row of a lookup: the columns that keys name, as their types print them.
-- Privileges: whatever the query of the configuration needs. Versions: 14 and later.
-- As a subquery it cannot be anything that writes by itself; a second row shows that none of them
-- is the row.
select {columns}
  from (
{query}
       ) as found
 limit 2
