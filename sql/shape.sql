-- What the log alone does not tell of the rules' tables: which tables they are, what is published
-- of them, which partitions they have, and what their rows consist of. Whatever of this changes
-- may change what readers see without any row in the stream.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It takes no
-- lock on any table that it asks about.
-- $1 and $2 are the schemas and names of the rules' tables and materialized views, $3 the
-- publication, $4 the names that the event trigger of views may have, of which the first that is
-- there counts, NULL if no rule looks at one.
-- Rows: the oid of the
-- rules' table that it concerns, null for all; its kind; which of this kind; how it reads; its
-- version; more of it; whether it told of nothing when it came: a partition that was made as one
-- of this table, a label that was added to an enum. More is a table's owner, which changes its
-- version; whether another schema has a table of its name; whether a column is generated; whether
-- a type, or a label, is as it was when the type was made.
-- What each means, and which changes are none, stands in `TablePrint` (src/sweep/prints.rs). An
-- object that is dropped and made again has another oid. One that is altered, or renamed there and
-- back, has another xmin: of its publication, its schema, the type of its rows, its column, its
-- label. A partition that was detached and attached again has another pg_inherits.xmin.
-- Each xmin outlives VACUUM, a restored dump is another cluster, and TRUNCATE and rewrites do not
-- change it,
-- with one exception: the rewrite of a table that has columns added with a default. A column's
-- xmin is the one thing that ALTER TYPE from a type to the same one changes for good. It also
-- changes with SET DEFAULT, NOT NULL or STATISTICS, which write no row anew: the table's files
-- stay.
with recursive wanted as (
  select c.oid, c.relkind, c.relname, c.relpersistence, c.relowner, c.relrowsecurity,
         c.relforcerowsecurity, n.oid as schema, n.nspname, n.xmin as schema_version,
         t.xmin as version
    from unnest($1::text[], $2::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
    join pg_type t on t.oid = c.reltype
   where c.relkind in ('r', 'p', 'v', 'm', 'f')
), publication as (
  select oid, xmin as version, puballtables, pubviaroot from pg_publication where pubname = $3
), below as (
  select oid, relkind, null::oid as parent, oid as root from wanted where relkind = 'p'
   union
  select i.inhrelid, b.relkind, i.inhparent, b.root
    from below b
    join pg_inherits i on i.inhparent = b.oid
), heir as (
  select h.inhrelid as oid, w.relkind, h.inhparent as parent, w.oid as root
    from wanted w
    join pg_inherits h on h.inhparent = w.oid
   where w.relkind = 'r'
), member as (
  select oid from wanted
), {published}, path as (
  -- What makes a table a partition of the one under whose name it is published.
  select covered.oid, string_agg(i.xmin::text, ' ' order by l.height) as versions
    from covered
    join lineage top on top.oid = covered.oid and top.ancestor = covered.top
    join lineage l on l.oid = covered.oid and l.height < top.height
    join pg_inherits i on i.inhrelid = l.ancestor
   group by covered.oid
), type as (
  -- The users' own types of the columns, and what those consist of.
  select w.oid as root, a.atttypid as oid
    from wanted w
    join pg_attribute a on a.attrelid = w.oid
   where w.relkind <> 'm' and a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384
   union
  select type.root, part.oid
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
select null::oid as root, 'publication' as kind, null::text as name,
       concat_ws(' ', p.oid, p.version) as face, null::text as version, null::text as more,
       false as is_born_empty
  from publication p
union all
select l.oid, 'published', listed.entry::text, listed.version::text, null, null, false
  from lineage l
  join listed on listed.oid = l.ancestor
union all
select l.oid, 'published', concat_ws(' ', 'schema', s.entry), null, null, null, false
  from lineage l
  join in_schemas s on s.oid = l.ancestor
union all
-- Published as a partition of another table only while it is one.
select w.oid, 'published', 'by name',
       concat_ws(' ', covered.top, published.oid, path.versions), null, null, false
  from wanted w
  join covered on covered.oid = w.oid
  left join published on published.oid = w.oid
  left join path on path.oid = w.oid
union all
select w.oid, 'table', w.relname, concat_ws(' ', w.oid, w.relkind, w.relpersistence),
       case when w.relkind <> 'm' then w.version::text end, w.relowner::text, false
  from wanted w
union all
select w.oid, 'schema', w.nspname, w.schema::text, w.schema_version::text,
       (select 'namesake'
          from pg_class same
          join pg_namespace other on other.oid = same.relnamespace
         where same.relname = w.relname and same.oid <> w.oid
           and same.relkind in ('r', 'p', 'v', 'm', 'f')
           and other.nspname !~ '^pg_(temp|toast)'
         limit 1), false
  from wanted w
union all
-- Which rows whoever reads it is shown.
select w.oid, 'security', null, concat_ws(' ', w.relforcerowsecurity, policy.versions), null, null,
       false
  from wanted w
  left join (select polrelid, string_agg(concat_ws(' ', oid, xmin), ' ' order by oid) as versions
               from pg_policy
              group by polrelid) as policy on policy.polrelid = w.oid
 where w.relrowsecurity
union all
-- The files of all its rows, partitions' and heirs' included.
select f.root, 'files', null, sum(hashtextextended(concat_ws(' ', c.oid, c.relfilenode), 0))::text,
       null, null, false
  from (select oid, oid as root from wanted where relkind = 'r'
         union
        select oid, root from below
         union
        select oid, root from heir) as f
  join pg_class c on c.oid = f.oid
 group by f.root
union all
select w.oid, 'column', concat_ws(' ', a.attnum, a.attname),
       concat_ws(' ', a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attgenerated,
                 hashtextextended(d.adbin::text, 0)),
       a.xmin::text, case when a.attgenerated <> '' then 'generated' end, false
  from wanted w
  join pg_attribute a on a.attrelid = w.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated <> ''
 where w.relkind <> 'm'
union all
select type.root, 'type', t.oid::text,
       concat_ws(' ', t.typtype, t.typbasetype, t.typoutput, p.xmin,
                 (select string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                              a.xmin), ', ' order by a.attnum)
                    from pg_attribute a
                   where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)),
       null, made.made, made.made is not null
  from type
  join pg_type t on t.oid = type.oid
  join pg_proc p on p.oid = t.typoutput
 cross join lateral (
         select case when not exists (select
                                        from pg_enum e
                                       where e.enumtypid = t.oid and e.xmin <> t.xmin)
                      and not exists (select
                                        from pg_attribute a
                                       where a.attrelid = t.typrelid and a.attnum > 0
                                         and a.xmin <> t.xmin) then 'as made' end
       ) as made (made)
union all
-- A label that is new is in no row yet.
select type.root, 'label', concat_ws(' ', e.enumtypid, e.oid),
       concat_ws(' ', e.xmin, e.enumlabel), null,
       case when e.xmin = t.xmin then 'as made' end, true
  from type
  join pg_type t on t.oid = type.oid
  join pg_enum e on e.enumtypid = type.oid
union all
select part.root, 'partition', concat_ws(' ', i.inhparent, i.inhrelid),
       concat_ws(' ', c.relkind, c.relpersistence, i.xmin), null, null,
       -- The type of a table's rows is made with the table and stays as it is, and so do columns.
       -- To attach a table changes each of its columns: whoever makes, fills and attaches one in
       -- one transaction is known by that.
       part.relkind = 'p' and i.xmin = t.xmin
         and exists (select
                       from pg_attribute a
                      where a.attrelid = i.inhrelid and a.attnum > 0
                        and a.xmin = t.xmin and a.cmin = t.cmin)
  from (select oid, relkind, parent, root from below where parent is not null
         union
        select oid, relkind, parent, root from heir) as part
  join pg_inherits i on i.inhrelid = part.oid and i.inhparent = part.parent
  join pg_class c on c.oid = i.inhrelid
  join pg_type t on t.oid = c.reltype
union all
-- Of a view only which one has the name is looked at: the trigger tells of whatever is done to the
-- view, but there is no ALTER SCHEMA among what it sees, by which another view takes the name.
select null, 'trigger', null,
       concat_ws(' ', e.oid, e.xmin, p.oid, p.xmin, current_setting('event_triggers', true)),
       null, null, false
  from pg_event_trigger e
  join pg_proc p on p.oid = e.evtfoid
 where e.evtname = (select known.evtname
                     from pg_event_trigger known
                    where known.evtname = any ($4::text[])
                    order by array_position($4::text[], known.evtname::text)
                    limit 1)
union all
-- As whom lookups read: what of the role, its settings and the database's changes what a query of
-- theirs gives. Sessions that stand keep what they began with. Settings with a point in their name
-- are the application's own.
select null, 'role', null,
       concat_ws(' ', r.rolsuper, r.rolbypassrls,
                 (select string_agg(concat_ws(' ', s.setdatabase, s.setrole, setting), ' '
                                    order by s.setdatabase, s.setrole, setting)
                    from pg_db_role_setting s
                   cross join unnest(s.setconfig) as setting
                   where s.setrole in (0, r.oid)
                     and s.setdatabase in (0, (select oid from pg_database
                                                where datname = current_database()))
                     and (split_part(setting, '=', 1) like '%.%'
                          or lower(split_part(setting, '=', 1)) in (
                               'search_path', 'standard_conforming_strings',
                               'transform_null_equals', 'array_nulls', 'quote_all_identifiers',
                               'datestyle', 'role', 'row_security', 'default_text_search_config',
                               'lc_monetary', 'lc_numeric', 'lc_time', 'xmloption',
                               'xmlbinary')))),
       null, null, false
  from pg_roles r
 where r.rolname = session_user
