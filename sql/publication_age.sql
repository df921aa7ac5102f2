-- Whether a publication was created, or itself altered, by a transaction that a slot may still have
-- to decode: then the server may look for it at a time when it was not there.
-- Privileges: none. Versions: 14 and later. $1 is the slot's name, $2 the publication's. No row:
-- one of the two is missing.
-- A table that is added or dropped does not touch the row. After 2^31 transactions the age of a row
-- is negative, and says nothing. A new slot takes over the horizon of whichever slot has the oldest
-- (GetOldestSafeDecodingTransactionId, procarray.c), and then its own catalog_xmin does not tell
-- where it begins: where another one's is as old, nothing is said.
select age(p.xmin) between 0 and age(s.catalog_xmin)
       and not exists (select
                         from pg_replication_slots other
                        where other.slot_name <> s.slot_name
                          and greatest(age(other.xmin), age(other.catalog_xmin))
                              >= age(s.catalog_xmin))
  from pg_replication_slots s
 cross join pg_publication p
 where s.slot_name = $1
   and p.pubname = $2
   and s.catalog_xmin is not null
