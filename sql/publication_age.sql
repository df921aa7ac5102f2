-- Whether a publication was created, or itself altered, by a transaction that a slot may still have
-- to decode: then the server may look for it at a time when it was not there.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name, $2 the publication's. No row:
-- one of the two is missing.
-- A table that is added or dropped does not touch the row. After 2^31 transactions the age of a row
-- is negative, and says nothing.
select age(p.xmin) between 0 and age(s.catalog_xmin)
  from pg_replication_slots s
 cross join pg_publication p
 where s.slot_name = $1
   and p.pubname = $2
   and s.catalog_xmin is not null
