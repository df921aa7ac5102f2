-- How some relations are identified now, whose they are, and who else depends on that.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 and $2 are schemas and names, $3 is the publication. Rows: those that are there.
-- The third column is whether the publication names the relation itself, the fifth another
-- publication of updates or deletes that has it, by whatever way: then the application's writes
-- need an identity. The sixth is whether the publication's owner may alter the relation. The
-- seventh, as JSON, are the relation and the tables that it is a partition of: schema, name,
-- whether the publication names it, and whether it has it otherwise, by schema or with all tables.
-- What is published of them needs the relation's identity, too. The last are its indexes that may
-- be its identity (check_index_for_replica_identity and ATExecReplicaIdentity, tablecmds.c).
with recursive member as (
  select c.oid
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
   where c.relkind in ('r', 'p')
), publication as (
  select * from pg_publication where pubname = $3
), {published}, above as (
  select l.oid,
         jsonb_agg(jsonb_build_array(
           n.nspname, a.relname, listed.oid is not null,
           coalesce(p.puballtables, false) or a.oid in (select oid from in_schemas))
           order by l.height)::text as shown
    from lineage l
    join pg_class a on a.oid = l.ancestor
    join pg_namespace n on n.oid = a.relnamespace
    left join publication p on true
    left join listed on listed.oid = a.oid
   group by l.oid
), elsewhere as (
  select l.oid, min(p.pubname)::text as name
    from lineage l
    join pg_class a on a.oid = l.ancestor
    join pg_publication p on p.pubname <> $3 and (p.pubupdate or p.pubdelete)
   where p.puballtables
      or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = a.oid)
      or exists (select from schema_of s where s.publication = p.oid and s.schema = a.relnamespace)
   group by l.oid
)
select n.nspname::text, c.relname::text, c.oid in (select oid from listed), c.relreplident,
       elsewhere.name,
       coalesce((select pg_has_role(p.pubowner, c.relowner, 'usage') from publication p), false),
       above.shown,
       array(select x.relname::text
               from pg_index i
               join pg_class x on x.oid = i.indexrelid
              where i.indrelid = c.oid
                and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
                and i.indexprs is null
                and not exists (select
                                  from unnest(i.indkey) with ordinality as key (attnum, position)
                                  join pg_attribute a on a.attrelid = c.oid
                                                     and a.attnum = key.attnum
                                 where key.position <= i.indnkeyatts and not a.attnotnull))
  from member
  join pg_class c on c.oid = member.oid
  join pg_namespace n on n.oid = c.relnamespace
  join above on above.oid = c.oid
  left join elsewhere on elsewhere.oid = c.oid
