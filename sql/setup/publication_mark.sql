-- Whose a publication is, and what was remembered of it.
-- Privileges: none. Versions: 14 to 18. $1 is its name. No row: there is no such publication.
select pg_get_userbyid(pubowner)::text, obj_description(oid, 'pg_publication')
  from pg_publication
 where pubname = $1
