-- Whether the event trigger of the name $1, and the function of that name in schema public, are
-- walsweep's: each has the comment that begins with $2, or the function sends what only walsweep's
-- does, as one did that was made before there were comments.
-- Privileges: none. Versions: 14 to 18. Always one row: whether there is a trigger, whether it is
-- ours, whether there is a function, whether it is ours.
select e.oid is not null,
       coalesce(starts_with(obj_description(e.oid, 'pg_event_trigger'), $2)
                or e.evtfoid = p.oid and strpos(p.prosrc, '''walsweep.refresh''') > 0, false),
       p.oid is not null,
       coalesce(starts_with(obj_description(p.oid, 'pg_proc'), $2)
                or strpos(p.prosrc, '''walsweep.refresh''') > 0, false)
  from (select $1::text as name) wanted
  left join pg_event_trigger e on e.evtname = wanted.name
  left join pg_proc p on p.proname = wanted.name and p.pronargs = 0
                     and p.pronamespace = to_regnamespace('public')
