-- Tables that the publication names, that inherit from some tables, and that are no partitions.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 and $2 are schemas and names of the tables, $3 is the publication. Rows: schema and name of
-- each, and the tables that it inherits from as messages name them.
with recursive parent as (
  select c.oid, n.nspname || '.' || c.relname as name
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name and c.relkind = 'r'
), heir as (
  select i.inhrelid as oid, parent.name as parent
    from parent
    join pg_inherits i on i.inhparent = parent.oid
   union
  select i.inhrelid, heir.parent
    from heir
    join pg_inherits i on i.inhparent = heir.oid
)
select n.nspname::text, c.relname::text, array_agg(distinct heir.parent order by heir.parent)
  from heir
  join pg_class c on c.oid = heir.oid and not c.relispartition
  join pg_namespace n on n.oid = c.relnamespace
  join pg_publication_rel r on r.prrelid = c.oid
  join pg_publication p on p.oid = r.prpubid and p.pubname = $3
 group by n.nspname, c.relname
 order by 1, 2
