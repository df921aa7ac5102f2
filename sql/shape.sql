-- What the log alone does not tell of the rules' tables: which tables they are, what is published
-- of them, and which partitions they have. Whatever of this changes may change what readers see
-- without any row in the stream.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
-- $1 and $2 are the schemas and names of the rules' tables, $3 the publication. Rows: a table's
-- oid and a partition's, the latter null for what concerns the table itself; a text that is other
-- when something is other; whether the partition was made as one of this table, and so was empty.
-- An object that is dropped and made again has another oid. One that is altered, or renamed there
-- and back, has another xmin: of its publication, its schema or the type of its rows. It outlives
-- VACUUM, a restored dump is another cluster, and TRUNCATE and rewrites do not change it.
with wanted as (
  select c.oid, c.relkind, concat_ws(' ', n.xmin, t.xmin) as version
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
    join pg_type t on t.oid = c.reltype
   where c.relkind in ('r', 'p', 'v', 'm', 'f')
), family as (
  select w.oid as root, up.relid::oid as oid
    from wanted w, pg_partition_ancestors(w.oid) as up (relid)
   union
  select oid, oid from wanted
)
select null::oid as root, null::oid as partition,
       concat_ws(' ', 'publication', p.oid, p.xmin) as shape, false as is_born_here
  from pg_publication p
 where p.pubname = $3
union all
select f.root, null,
       concat_ws(' ', 'published', r.oid, r.xmin), false
  from family f
  join pg_publication_rel r on r.prrelid = f.oid
  join pg_publication p on p.oid = r.prpubid and p.pubname = $3
union all
select w.oid, null,
       concat_ws(' ', 'by name', t.schemaname, t.tablename), false
  from wanted w
  join pg_class c on c.oid in (select f.oid from family f where f.root = w.oid)
  join pg_namespace n on n.oid = c.relnamespace
  join pg_publication_tables t on t.pubname = $3
                              and t.schemaname = n.nspname and t.tablename = c.relname
union all
select w.oid, null,
       concat_ws(' ', 'columns', w.relkind, w.version,
                 (select string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod),
                                    ', ' order by a.attnum)
                    from pg_attribute a
                   where a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped)), false
  from wanted w
union all
select i.inhparent, i.inhrelid,
       concat_ws(' ', 'partition', i.inhparent, i.inhrelid, c.relkind),
       -- The type of a table's rows is made with the table and stays as it is, and so do columns.
       -- To attach a table changes each of its columns: whoever makes, fills and attaches one in
       -- one transaction is known by that.
       w.relkind = 'p' and i.xmin = t.xmin
         and exists (select
                       from pg_attribute a
                      where a.attrelid = i.inhrelid and a.attnum > 0
                        and a.xmin = t.xmin and a.cmin = t.cmin)
  from (select w.relkind, tree.relid::oid as oid
          from wanted w, pg_partition_tree(w.oid) tree
         where w.relkind = 'p'
         union
        select w.relkind, h.inhrelid
          from wanted w
          join pg_inherits h on h.inhparent = w.oid
         where w.relkind = 'r') as w
  join pg_inherits i on i.inhrelid = w.oid
  join pg_class c on c.oid = i.inhrelid
  join pg_type t on t.oid = c.reltype
 order by 1 nulls first, 2 nulls first, 3
