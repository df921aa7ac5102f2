-- Whether a standby keeps a copy of a slot of its primary, and what it is set to, as one JSON text.
-- Privileges: none; who may not see primary_conninfo gets null for it. Versions: 17 and later;
-- before that no slot is synced. Asked over a replication connection, which takes no parameters.
select jsonb_build_object(
  'sync_replication_slots', (select setting from pg_settings
                              where name = 'sync_replication_slots'),
  'hot_standby_feedback', (select setting from pg_settings where name = 'hot_standby_feedback'),
  'primary_slot_name', (select setting from pg_settings where name = 'primary_slot_name'),
  'has_dbname', (select setting ~ 'dbname *=' from pg_settings where name = 'primary_conninfo'),
  'slot', (select jsonb_build_object(
                    'synced', coalesce((to_jsonb(s) ->> 'synced')::boolean, false),
                    'temporary', s.temporary)
             from pg_replication_slots s where s.slot_name = {slot}))::text
