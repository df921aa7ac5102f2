-- How some relations are identified now, and whether anybody else depends on it.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 and $2 are schemas and names, $3 is the publication. Rows: those that are there.
-- The third column is whether the publication names the relation itself, the fifth whether another
-- publication of updates or deletes may have it: then the application's writes need an identity.
select n.nspname::text, c.relname::text,
       exists (select from pg_publication_rel r
                 join pg_publication p on p.oid = r.prpubid
                where r.prrelid = c.oid and p.pubname = $3),
       c.relreplident,
       exists (select from pg_publication p
                where p.pubname <> $3 and (p.pubupdate or p.pubdelete))
  from unnest($1::text[], $2::text[]) as wanted (schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
 where c.relkind in ('r', 'p')
