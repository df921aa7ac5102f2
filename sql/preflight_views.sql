-- The materialized views that rules name, and what tells walsweep of a refresh, as one JSON text.
-- Privileges: none; the catalogs that it reads are open to all. Versions: 14 to 18. event_triggers
-- came with 17. $1 and $2 are the schemas and names of the views, $3 the names that the event
-- trigger may have, of which the first that is there counts; its function is looked for by the
-- first.
select jsonb_build_object(
  'views', (
    select coalesce(jsonb_agg(jsonb_build_object(
             'schema', n.nspname, 'name', c.relname, 'kind', c.relkind)), '[]')
      from unnest($1::text[], $2::text[]) as wanted (schema, name)
      join pg_namespace n on n.nspname = wanted.schema
      join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
     where c.relkind in ('r', 'p', 'v', 'm', 'f')),
  'others', (
    select coalesce(jsonb_agg(to_jsonb(known) order by known.schema, known.name), '[]')
      from (select schemaname as schema, matviewname as name
              from pg_matviews limit 10000) known),
  'function', (
    select jsonb_build_object('body', p.prosrc, 'comment', obj_description(p.oid, 'pg_proc'))
      from pg_proc p
     where p.proname = ($3::text[])[1] and p.pronargs = 0
       and p.pronamespace = to_regnamespace('public')),
  'trigger', (
    select jsonb_build_object(
             'name', e.evtname,
             'enabled', e.evtenabled,
             'event', e.evtevent,
             'tags', e.evttags,
             'function', p.pronamespace::regnamespace::text || '.' || p.proname,
             'body', p.prosrc,
             'runs_as_owner', p.prosecdef,
             'settings', p.proconfig)
      from pg_event_trigger e
      join pg_proc p on p.oid = e.evtfoid
     where e.evtname = any ($3::text[])
     order by array_position($3::text[], e.evtname::text)
     limit 1),
  'event_triggers', current_setting('event_triggers', true))::text
