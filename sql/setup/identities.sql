-- How some relations are identified now, and whether anybody else depends on it.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 and $2 are schemas and names, $3 is the publication. Rows: those that are there.
-- The third column is whether the publication names the relation itself, the fifth whether another
-- publication of updates or deletes may have it: then the application's writes need an identity.
-- The last are the tables of which it is a partition, and whether the publication has them, be it
-- by name, by schema, or with all tables: what is published of them needs its identity, too.
select n.nspname::text, c.relname::text,
       exists (select from pg_publication_rel r
                 join pg_publication p on p.oid = r.prpubid
                where r.prrelid = c.oid and p.pubname = $3),
       c.relreplident,
       exists (select from pg_publication p
                where p.pubname <> $3 and (p.pubupdate or p.pubdelete)),
       (select coalesce(jsonb_agg(jsonb_build_array(s.nspname, a.relname, exists (
                 select from pg_publication p
                  where p.pubname = $3
                    and (p.puballtables
                         or exists (select from pg_publication_rel r
                                     where r.prpubid = p.oid and r.prrelid = a.oid)
                         or exists (select from pg_depend entry
                                      join pg_depend schema on schema.classid = entry.classid
                                       and schema.objid = entry.objid
                                       and schema.refclassid = 'pg_catalog.pg_namespace'::regclass
                                     where entry.refclassid
                                           = 'pg_catalog.pg_publication'::regclass
                                       and entry.refobjid = p.oid
                                       and entry.classid
                                           = to_regclass('pg_catalog.pg_publication_namespace')
                                       and schema.refobjid = a.relnamespace))))), '[]')
          from pg_partition_ancestors(c.oid) as ancestor (oid)
          join pg_class a on a.oid = ancestor.oid and a.oid <> c.oid
          join pg_namespace s on s.oid = a.relnamespace)::text
  from unnest($1::text[], $2::text[]) as wanted (schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
 where c.relkind in ('r', 'p')
