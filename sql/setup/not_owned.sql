-- What of walsweep's in a database, and of some tables, the role of the session may not alter, drop
-- or comment on, with its owner.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. It locks none.
-- $1 is the publication, $2 the event trigger and its function in schema public; null for none of
-- them; $3 and $4 are schemas and names of tables. Rows: a name for messages, and the owner.
select owned.what, pg_get_userbyid(owned.owner)::text
  from (select 'publication `' || pubname || '`' as what, pubowner as owner
          from pg_publication
         where pubname = $1
         union all
        select 'event trigger `' || evtname || '`', evtowner
          from pg_event_trigger
         where evtname = $2
         union all
        select 'function `' || proname || '`', proowner
          from pg_proc
         where proname = $2 and pronargs = 0 and pronamespace = to_regnamespace('public')
         union all
        select 'table `' || n.nspname || '.' || c.relname || '`', c.relowner
          from unnest($3::text[], $4::text[]) as wanted (schema, name)
          join pg_namespace n on n.nspname = wanted.schema
          join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
       ) owned
 where not pg_has_role(owned.owner, 'usage')
