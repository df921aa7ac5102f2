-- What the answers of the query in pg_temp.walsweep_lookup depend on; $1 is the publication.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
-- Rows: oid, schema and name of a table; a reason why answers must not be kept, and whether
-- publishing the table would cure it; the role's search_path. Reasons come first.
-- pg_depend does not tell of what is part of Postgres: now(), random(), pg_class. The parsed query
-- does, as text (outfuncs.c): nodes are `{NAME :field value …}`, and what users name has its
-- braces escaped. Only nodes that are known to be harmless pass: what is none, or what another
-- version calls by another name, is a reason.
with recursive body as (
  select p.oid, p.prosqlbody::text as tree, p.proargtypes
    from pg_proc p
   where p.pronamespace = pg_my_temp_schema() and p.proname = 'walsweep_lookup'
), node as (
  select distinct found[1] as name
    from body, regexp_matches(tree, '\u007b([A-Z][A-Z0-9_]*)', 'g') as found
), number as (
  select distinct found[1] as field, found[2]::numeric as value
    from body, regexp_matches(tree, ':([a-z_]+) (-?\d+)', 'g') as found
), type as (
  select value::bigint::oid as oid
    from number
   where field ~ 'type(id)?$' and value between 0 and 4294967295
), called as (
  select value::bigint::oid as oid
    from number
   where field in ('funcid', 'opfuncid', 'aggfnoid') and value > 0
   union
  select o.oprcode
    from number
    join pg_operator o on o.oid = number.value::bigint::oid
   where field in ('opno', 'eqop', 'sortop') and value > 0
), relation as (
  select value::bigint::oid as oid from number where field = 'relid' and value > 0
   union
  select d.refobjid
    from pg_depend d
    join body on d.classid = 'pg_proc'::regclass and d.objid = body.oid
   where d.refclassid = 'pg_class'::regclass
), publication as (
  select * from pg_publication where pubname = $1
), member as (
  select oid from relation
), {published}, reason as (
  select 'the server does not tell what it depends on' as why
   where not exists (select from node where name = 'QUERY')
  union all
  select format('it has a %s', lower(name))
    from node
   where name not in (
           'AGGREF', 'ALIAS', 'ARRAY', 'ARRAYEXPR', 'BOOLEANTEST', 'BOOLEXPR', 'CASE',
           'CASEEXPR', 'CASETESTEXPR', 'CASEWHEN', 'COALESCE', 'COALESCEEXPR', 'COERCEVIAIO',
           'COLLATE', 'COLLATEEXPR', 'COMMONTABLEEXPR', 'CONST', 'DISTINCTEXPR', 'FROMEXPR',
           'FUNCEXPR', 'JOINEXPR', 'MINMAX', 'MINMAXEXPR', 'NULLIFEXPR', 'NULLTEST', 'OPEXPR',
           'PARAM', 'QUERY', 'RANGETBLENTRY', 'RANGETBLREF', 'RELABELTYPE', 'RTE',
           'RTEPERMISSIONINFO', 'SCALARARRAYOPEXPR', 'SORTGROUPCLAUSE', 'SUBLINK', 'TARGETENTRY',
           'VAR', 'WHEN')
  union all
  -- ctid, xmin and the like change with VACUUM.
  select 'it reads a system column'
    from number
   where field = 'varattno' and value < 0
  union all
  select format('it calls `%s`, which is not immutable', p.proname)
    from called
    join pg_proc p using (oid)
   where p.provolatile <> 'i'
  union all
  -- Labels of an enum change without a change of any row, as do names that regclass prints.
  select format('it has values of type `%s`, which may be altered', format_type(t.oid, null))
    from type
    join pg_type t using (oid)
   where t.oid >= 16384 or t.typname like 'reg%' or t.typname like '\_reg%'
  union all
  select 'it depends on ' || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
    from pg_depend d
    join body on d.classid = 'pg_proc'::regclass and d.objid = body.oid
   where d.refclassid not in ('pg_class'::regclass, 'pg_namespace'::regclass)
  union all
  -- 'now' and 'today' are dates.
  select 'it converts dates and texts'
   where exists (select from node where name = 'COERCEVIAIO')
     and exists (select from type where oid in (1082, 1083, 1114, 1184, 1266))
  union all
  select 'it has a date as a parameter'
    from body
   where proargtypes::oid[] && array[1082, 1083, 1114, 1184, 1266]::oid[]
)
select null::oid, null::text, null::text, why, false, null::text
  from reason
union all
select c.oid, n.nspname::text, c.relname::text,
       case
         when c.relkind <> 'r' or c.relpersistence <> 'p'
           then format('`%s.%s` is not an ordinary table', n.nspname, c.relname)
         when exists (select from pg_inherits i where c.oid in (i.inhrelid, i.inhparent))
           then format('`%s.%s` is a partition, or inherits', n.nspname, c.relname)
         when c.relrowsecurity
           then format('`%s.%s` has row-level security', n.nspname, c.relname)
         when published.oid is null
           then format('`%s.%s` is not published', n.nspname, c.relname)
         when not p.puballtables and listed.filter is not null
                                 and c.oid not in (select oid from in_schemas)
           then format('`%s.%s` is published with a row filter', n.nspname, c.relname)
         when not (p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate)
           then format('publication `%s` does not publish every operation', $1)
       end,
       c.oid >= 16384 and c.relkind = 'r' and c.relpersistence = 'p' and published.oid is null,
       (select reset_val from pg_settings where name = 'search_path')
  from relation
  join pg_class c using (oid)
  join pg_namespace n on n.oid = c.relnamespace
  left join publication p on true
  left join published on published.oid = c.oid
  left join listed on listed.oid = c.oid
 order by 4 nulls last, 1
