-- Ends the process that has the slot and that no walsweep is behind. It is printed, never run.
-- Privileges: to be its role, or a superuser. Versions: 14 and later.
select pg_terminate_backend({pid})
