-- Tells walsweep of every materialized view that gets other rows: refreshed, created, or renamed.
-- Privileges: superuser, or the administrator role of a managed service; CREATE on schema public.
-- Versions: 14 to 18.
--
-- The message belongs to the transaction of the refresh: it is gone when that is rolled back, and
-- arrives with its commit. The function belongs to whoever installs it and runs with that role's
-- rights, so that a role that may refresh a view needs no other right; all that comes from the
-- outside is the view's name. It is made anew, never replaced: one that somebody else had put there
-- would stay theirs. Names are told without needless quotes, whatever the session of the refresh
-- quotes. One transaction. A name that UTF-8 cannot say must not fail the refresh: then the message
-- is empty, and stands for any view. ALWAYS, because session_replication_role = replica would skip
-- it.
drop event trigger if exists {trigger};
drop function if exists public.{trigger}();
create function public.{trigger}() returns pg_catalog.event_trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $walsweep$
declare
  command record;
  content bytea;
begin
  for command in
    select distinct object_identity
      from pg_catalog.pg_event_trigger_ddl_commands()
     where object_type = 'materialized view'
  loop
    begin
      content := pg_catalog.convert_to(command.object_identity, 'UTF8');
    exception when others then
      content := '';
    end;
    perform pg_catalog.pg_logical_emit_message(true, 'walsweep.refresh', content);
  end loop;
end
$walsweep$;
create event trigger {trigger} on ddl_command_end
  when tag in ('REFRESH MATERIALIZED VIEW', 'CREATE MATERIALIZED VIEW', 'ALTER MATERIALIZED VIEW',
               'ALTER TABLE')
  execute function public.{trigger}();
alter event trigger {trigger} enable always;
comment on event trigger {trigger} is {comment};
comment on function public.{trigger}() is {comment}
