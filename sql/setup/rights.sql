-- What the role of the session may not do to a publication and to some tables, and whether it may
-- create a publication.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 is the publication, $2 and $3 are schemas and names of tables. One row: whether it may create
-- one in this database; the owner of the publication, if it does not have that role's rights; of
-- the tables whose owner's rights it does not have, their places, from 1 on, and the owners.
select has_database_privilege(current_database(), 'create'),
       (select pg_get_userbyid(pubowner)::text
          from pg_publication
         where pubname = $1 and not pg_has_role(pubowner, 'usage')),
       coalesce(array_agg(denied.place order by denied.place), '{}'),
       coalesce(array_agg(denied.owner order by denied.place), '{}')
  from (select wanted.place, pg_get_userbyid(c.relowner)::text as owner
          from unnest($2::text[], $3::text[]) with ordinality as wanted (schema, name, place)
          join pg_namespace n on n.nspname = wanted.schema
          join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
         where not pg_has_role(c.relowner, 'usage')) as denied
