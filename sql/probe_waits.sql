-- What a session waits for that does not end its COMMIT, and which standbys a commit may wait for.
-- Privileges: none; the sessions of one's own role are seen whole. Versions: 14 to 18.
-- $1 is the process of the session. No row: it is over.
select coalesce(wait_event, ''), current_setting('synchronous_standby_names')
  from pg_stat_activity
 where pid = $1
