-- What the log does not tell of the tables that kept answers of lookups depend on, beside what
-- sql/shape.sql tells of them.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18.
-- $1 is the tables' oids. Rows are as those of sql/shape.sql, which tells of their columns. It is
-- another one when the table becomes one of another kind, and when another table of its name comes
-- into the path, the role's own: it is set for as long as its schemas are listed.
with role as (
  select reset_val as path from pg_settings where name = 'search_path'
), schema as materialized (
  -- In this order: a CASE evaluates the condition first.
  select role.path, case when set_config('search_path', role.path, true) is not null
                         then current_schemas(true) end as names
    from role
), own as materialized (
  select path, names, set_config('search_path', 'pg_catalog, pg_temp', true) from schema
)
select c.oid, 'lookup', null::text,
       concat_ws(' ', c.oid, c.relkind, c.relpersistence, c.relrowsecurity,
                 (select string_agg(concat_ws(' ', i.inhrelid, i.inhparent, i.xmin), ' '
                                    order by i.inhrelid, i.inhparent)
                    from pg_inherits i
                   where c.oid in (i.inhrelid, i.inhparent)),
                 (select string_agg(same.oid::text, ' ' order by same.oid)
                    from pg_class same
                    join pg_namespace n on n.oid = same.relnamespace
                   where same.relname = c.relname
                     and n.nspname = any (own.names)),
                 own.path),
       null::text, null::text, false
  from own, pg_class c
 where c.oid = any ($1)
