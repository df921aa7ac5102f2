-- Whether each owner of some tables may create a slot; without tables, whoever asks.
-- Privileges: none. Versions: 14 to 18. $1 and $2 are schemas and names.
select coalesce(bool_and(o.rolsuper or o.rolreplication),
                (select rolsuper or rolreplication from pg_roles where rolname = current_user))
  from unnest($1::text[], $2::text[]) as wanted (schema, name)
  join pg_namespace n on n.nspname = wanted.schema
  join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
  join pg_roles o on o.oid = c.relowner
