-- Whether another walsweep waits for the slot: asked when a stop begins.
-- Privileges: none; the sessions of one's own role are seen whole. Versions: 14 and later.
-- $1 is the application_name of who waits, which the server cuts at 63 bytes.
select exists (select
                 from pg_stat_activity
                where datname = current_database()
                  and application_name = left($1, 63))
