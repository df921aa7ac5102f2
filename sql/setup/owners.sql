-- To whom things of walsweep's in a database belong, and some tables and schemas, and what the role
-- of the session may do with them.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 is the publication, $2 the event trigger and its function in schema public; null for none of
-- them; $3 and $4 are schemas and names of tables, $5 schemas; $6 whether the database is asked
-- about. A row for each that is there: its kind; of a table the schema; its name; the owner;
-- whether that may log in, and may make publications in this database; a role that may log in and
-- has the owner's rights, if there is one that is no superuser; whether the role of the session has
-- the owner's rights, and whether it may grant there what `setup` grants.
with owned as materialized (
  select 1 as place, 'publication' as kind, null::text as schema, pubname::text as name,
         pubowner as owner, false as may_grant
    from pg_publication
   where pubname = $1
   union all
  select 2, 'event trigger', null, evtname::text, evtowner, false
    from pg_event_trigger
   where evtname = $2
   union all
  select 3, 'function', null, proname::text, proowner, false
    from pg_proc
   where proname = $2 and pronargs = 0 and pronamespace = to_regnamespace('public')
   union all
  select 4, 'table', n.nspname::text, c.relname::text, c.relowner,
         has_table_privilege(c.oid, 'select with grant option')
    from unnest($3::text[], $4::text[]) as wanted (schema, name)
    join pg_namespace n on n.nspname = wanted.schema
    join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
   union all
  select 5, 'schema', null, nspname::text, nspowner,
         has_schema_privilege(oid, 'usage with grant option')
    from pg_namespace
   where nspname = any ($5::text[])
   union all
  select 6, 'database', null, datname::text, datdba,
         has_database_privilege(oid, 'connect with grant option')
    from pg_database
   where $6 and datname = current_database()
), role as materialized (
  select o.oid, o.rolname::text as name, o.rolcanlogin as can_log_in,
         has_database_privilege(o.oid, current_database(), 'create') as may_create,
         (select min(m.rolname)::text
            from pg_roles m
           where m.rolcanlogin and not m.rolsuper and m.oid <> o.oid
             and pg_has_role(m.oid, o.oid, 'usage')) as member
    from pg_roles o
   where o.oid in (select owner from owned)
)
select owned.kind, owned.schema, owned.name, role.name, role.can_log_in, role.may_create,
       role.member, pg_has_role(role.oid, 'usage'), coalesce(owned.may_grant, false)
  from owned
  join role on role.oid = owned.owner
 order by owned.place, owned.schema, owned.name
