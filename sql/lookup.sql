-- The rows of a lookup: the columns that keys name, as their types print them.
-- Privileges: whatever the query of the configuration needs. Versions: 14 and later.
-- As a subquery it cannot be anything that writes by itself; one row more than there may be shows
-- that there are more.
select {columns}
  from (
{query}
       ) as found
 limit {limit}
