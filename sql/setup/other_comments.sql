-- The comments on all publications of this database but one: another may record the slot, too.
-- Privileges: none. Versions: 14 to 18. $1 is the name of that one. It locks no table.
select obj_description(oid, 'pg_publication')
  from pg_publication
 where pubname <> $1 and obj_description(oid, 'pg_publication') is not null
