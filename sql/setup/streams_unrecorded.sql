-- Who streams from a slot that is not among some, with a publication: a walsweep whose slot its
-- comment does not record. The command of a walsender is its query; one that is not shown, or not
-- to its end, may name any publication.
-- Privileges: none; without those of pg_read_all_stats on the reader's role its query is hidden.
-- Versions: 14 to 18. $1 are the slots' names, $2 is the reader's application_name, $3 the
-- publication as the command names it. It locks no table.
select active_pid, slot_name::text
  from pg_replication_slots
  join pg_stat_activity on pid = active_pid
 where pg_replication_slots.database = current_database()
   and slot_name <> all ($1::text[]::name[]) and application_name = $2
   and (query not like 'START_REPLICATION %)' or position($3::text in query) > 0)
 order by slot_name
