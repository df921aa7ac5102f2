-- The columns of a table, $1 by oid. Rows: number, name.
-- Privileges: none; the catalog is open to all. Versions: 14 and later.
select attnum, attname::text
  from pg_attribute
 where attrelid = $1
   and attnum > 0
   and not attisdropped
