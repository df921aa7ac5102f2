-- What of walsweep's in a database, and of some tables, the role of the session may not alter, drop
-- or comment on, with its owner.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 is the publication, $2 the event trigger and its function in schema public, $5 a schema; null
-- for none of them; $3 and $4 are schemas and names of tables. Rows: a name for messages, and the
-- owner; whether that may log in, and may make publications in this database; a role that may log
-- in and has the owner's rights, if there is one that is no superuser.
select owned.what, o.rolname::text, o.rolcanlogin,
       has_database_privilege(o.oid, current_database(), 'create'),
       (select min(m.rolname)::text
          from pg_roles m
         where m.rolcanlogin and not m.rolsuper and m.oid <> o.oid
           and pg_has_role(m.oid, o.oid, 'usage'))
  from (select 1 as place, 'publication `' || pubname || '`' as what, pubowner as owner
          from pg_publication
         where pubname = $1
         union all
        select 2, 'event trigger `' || evtname || '`', evtowner
          from pg_event_trigger
         where evtname = $2
         union all
        select 3, 'function `' || proname || '`', proowner
          from pg_proc
         where proname = $2 and pronargs = 0 and pronamespace = to_regnamespace('public')
         union all
        select 4, 'table `' || n.nspname || '.' || c.relname || '`', c.relowner
          from unnest($3::text[], $4::text[]) as wanted (schema, name)
          join pg_namespace n on n.nspname = wanted.schema
          join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
         union all
        select 5, 'schema `' || nspname || '`', nspowner
          from pg_namespace
         where nspname = $5
       ) owned
  join pg_roles o on o.oid = owned.owner
 where not pg_has_role(owned.owner, 'usage')
 order by owned.place, owned.what
