-- What the log alone does not tell of the rules' tables: which tables they are, what is published
-- of them, which partitions they have, and what their rows consist of. Whatever of this changes may
-- change what readers see without any row in the stream.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on any table that it asks about.
-- $1 and $2 are the schemas and names of the rules' tables, $3 the publication, $4 the event
-- trigger that tells of materialized views, NULL if no rule looks at one. Rows: a table's oid and a
-- partition's, the latter null for what concerns the table itself; a text that is other when
-- something is other; whether what it tells of began empty: a partition that was made as one of
-- this table, a label that was added to an enum. An object that is dropped and made again has
-- another oid. One that is altered, or renamed there and back, has another xmin: of its
-- publication, its schema, the type of its rows, its column. It outlives VACUUM, a restored dump is
-- another cluster, and TRUNCATE and rewrites do not change it, with one exception: the rewrite of a
-- table that has columns added with a default. A column's xmin is the one thing that ALTER TYPE
-- from a type to the same one changes for good. It also changes with SET DEFAULT, NOT NULL or
-- STATISTICS, which change no row: doubt widens.
with recursive wanted as (
  select c.oid, c.relkind, concat_ws(' ', c.relpersistence, n.xmin, t.xmin) as version
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
    join pg_type t on t.oid = c.reltype
   where c.relkind in ('r', 'p', 'v', 'm', 'f')
), publication as (
  select oid, xmin as version, puballtables, pubviaroot from pg_publication where pubname = $3
), below as (
  select oid, relkind, null::oid as parent from wanted where relkind = 'p'
   union
  select i.inhrelid, b.relkind, i.inhparent
    from below b
    join pg_inherits i on i.inhparent = b.oid
), heir as (
  select h.inhrelid as oid, w.relkind, h.inhparent as parent
    from wanted w
    join pg_inherits h on h.inhparent = w.oid
   where w.relkind = 'r'
), member as (
  select oid from wanted
), {published}, type as (
  -- The users' own types of the columns, and what those consist of.
  select a.atttypid as oid
    from wanted w
    join pg_attribute a on a.attrelid = w.oid
   where a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384
   union
  select part.oid
    from type
    join pg_type t on t.oid = type.oid
   cross join lateral (
           select t.typbasetype
            union all
           select t.typelem
            union all
           select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
            union all
           select a.atttypid
             from pg_attribute a
            where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
         ) as part (oid)
   where part.oid >= 16384
)
select null::oid as root, null::oid as partition,
       concat_ws(' ', 'publication', p.oid, p.version) as shape, false as is_born_here
  from publication p
union all
select l.oid, null, concat_ws(' ', 'published', listed.entry, listed.version), false
  from lineage l
  join listed on listed.oid = l.ancestor
union all
select l.oid, null, concat_ws(' ', 'schema', s.entry), false
  from lineage l
  join in_schemas s on s.oid = l.ancestor
union all
select w.oid, null,
       concat_ws(' ', 'by name', covered.top, published.oid), false
  from wanted w
  join covered on covered.oid = w.oid
  left join published on published.oid = w.oid
union all
select w.oid, null,
       concat_ws(' ', 'columns', w.relkind, w.version,
                 string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.xmin,
                                      hashtextextended(d.adbin::text, 0)),
                            ', ' order by a.attnum)), false
  from wanted w
  left join pg_attribute a on a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated <> ''
 group by w.oid, w.relkind, w.version
union all
select null, null,
       concat_ws(' ', 'type', t.oid, t.typtype, t.typbasetype, t.typoutput, p.xmin,
                 (select string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                              a.xmin), ', ' order by a.attnum)
                    from pg_attribute a
                   where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)), false
  from type
  join pg_type t on t.oid = type.oid
  join pg_proc p on p.oid = t.typoutput
union all
-- A label that is new is in no row yet.
select null, null, concat_ws(' ', 'label', e.enumtypid, e.oid, e.enumlabel), true
  from type
  join pg_enum e on e.enumtypid = type.oid
union all
select i.inhparent, i.inhrelid,
       concat_ws(' ', 'partition', i.inhparent, i.inhrelid, c.relkind, c.relpersistence),
       -- The type of a table's rows is made with the table and stays as it is, and so do columns.
       -- To attach a table changes each of its columns: whoever makes, fills and attaches one in
       -- one transaction is known by that.
       part.relkind = 'p' and i.xmin = t.xmin
         and exists (select
                       from pg_attribute a
                      where a.attrelid = i.inhrelid and a.attnum > 0
                        and a.xmin = t.xmin and a.cmin = t.cmin)
  from (select oid, relkind, parent from below where parent is not null
         union
        select oid, relkind, parent from heir) as part
  join pg_inherits i on i.inhrelid = part.oid and i.inhparent = part.parent
  join pg_class c on c.oid = i.inhrelid
  join pg_type t on t.oid = c.reltype
union all
-- Of a view itself there is nothing to see: the trigger tells of whatever is done to it.
select null, null,
       concat_ws(' ', 'trigger', e.oid, e.xmin, p.oid, p.xmin,
                 current_setting('event_triggers', true)), false
  from pg_event_trigger e
  join pg_proc p on p.oid = e.evtfoid
 where e.evtname = $4
 order by 1 nulls first, 2 nulls first, 3
