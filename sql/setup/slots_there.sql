-- Which of some slots are there, in this database, and whether somebody reads them.
-- Privileges: none. Versions: 14 to 18. $1 are their names.
select slot_name::text, active
  from pg_replication_slots
 where slot_name = any ($1::text[]::name[]) and database = current_database()
