-- Part of other questions: under which name the publication publishes each relation that `member`
-- (oid) has. They define `member` and `publication`, the latter a row of pg_publication.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
-- It takes no lock on a relation that it asks about, unlike pg_publication_tables (from 15 on),
-- pg_partition_tree and pg_partition_ancestors: whoever has one exclusively would hold it up.
-- schema_of: the schemas that any publication has. lineage: each member with itself and every
-- partitioned table that it is a partition of.
-- listed, in_schemas: what the publication names. covered: members that it publishes, top is the
-- relation that it publishes most of. published: members that it publishes under their own name
-- (get_rel_sync_entry of pgoutput.c).
-- pg_publication_namespace is not there before 15; pg_depend knows its rows on every version.
schema_of as (
  select entry.refobjid as publication, schema.refobjid as schema, schema.objid as entry
    from pg_depend entry
    join pg_depend schema on schema.classid = entry.classid and schema.objid = entry.objid
                         and schema.refclassid = 'pg_catalog.pg_namespace'::regclass
   where entry.refclassid = 'pg_catalog.pg_publication'::regclass
     and entry.classid = to_regclass('pg_catalog.pg_publication_namespace')
), lineage as (
  select oid, oid as ancestor, 0 as height
    from member
   union all
  select l.oid, i.inhparent, l.height + 1
    from lineage l
    join pg_class c on c.oid = l.ancestor and c.relispartition
    join pg_inherits i on i.inhrelid = l.ancestor
), ancestor as (
  select distinct ancestor as oid from lineage
), listed as (
  select r.prrelid as oid, r.oid as entry, r.xmin as version,
         to_jsonb(r) ->> 'prqual' as filter, nullif(to_jsonb(r) -> 'prattrs', 'null') as numbers
    from publication p
    join pg_publication_rel r on r.prpubid = p.oid
    join ancestor on ancestor.oid = r.prrelid
), in_schemas as (
  select c.oid, s.entry
    from publication p
    join schema_of s on s.publication = p.oid
    join pg_class c on c.relnamespace = s.schema
    join ancestor on ancestor.oid = c.oid
), named as (
  select c.oid
    from ancestor
    join pg_class c on c.oid = ancestor.oid
   cross join publication p
   where c.relkind in ('r', 'p') and c.relpersistence = 'p' and c.oid >= 16384
     and (p.puballtables or c.oid in (select oid from listed)
                         or c.oid in (select oid from in_schemas))
), covered as (
  select l.oid, (array_agg(l.ancestor order by l.height desc))[1] as top
    from lineage l
    join named on named.oid = l.ancestor
   group by l.oid
), published as (
  select covered.oid
    from covered
    join pg_class c on c.oid = covered.oid and c.relpersistence = 'p'
   cross join publication p
   where case when p.pubviaroot then covered.top = covered.oid else c.relkind = 'r' end
)
