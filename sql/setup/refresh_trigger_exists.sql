-- Whether there is an event trigger of the name $1 with walsweep's function.
-- Privileges: none. Versions: 14 and later.
select exists (select
                 from pg_event_trigger e
                 join pg_proc p on p.oid = e.evtfoid
                 join pg_namespace n on n.oid = p.pronamespace
                where e.evtname = $1 and p.proname = $1 and n.nspname = 'public')
