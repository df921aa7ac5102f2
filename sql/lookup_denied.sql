-- What the session's role may not read, where the server refused the query of a lookup: $1 is the
-- server's message, which ends with a name without its schema, in whichever language. $2 is the
-- query. Privileges: none; the catalogs that it reads are open to all. Versions: 14 and later.
-- Asked with the role's own view (sql/as_role.sql), so every name is qualified.
-- One row at most: schema; table, or NULL if it is the schema that may not be used.
with denied as (
  select n.nspname as schema, c.relname as name,
         pg_catalog.array_position(pg_catalog.current_schemas(true), n.nspname) as place
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace
   where c.relkind operator(pg_catalog.=) any ('{r,p,v,m,f}'::pg_catalog."char"[])
     and not pg_catalog.has_table_privilege(c.oid, 'select')
     and pg_catalog.has_schema_privilege(n.oid, 'usage')
   union all
  select n.nspname, null, null
    from pg_catalog.pg_namespace n
   where not pg_catalog.has_schema_privilege(n.oid, 'usage')
)
select denied.schema::pg_catalog.text, denied.name::pg_catalog.text
  from denied,
       lateral (select coalesce(denied.name, denied.schema)::pg_catalog.text as text) as named
 where pg_catalog.strpos($1, named.text) operator(pg_catalog.>) 0
   and (denied.place is not null
        or pg_catalog.strpos(pg_catalog.lower($2),
                             pg_catalog.lower(denied.schema::pg_catalog.text))
           operator(pg_catalog.>) 0)
 order by pg_catalog.length(named.text) desc, denied.place
 limit 1
