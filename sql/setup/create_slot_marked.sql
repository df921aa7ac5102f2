-- The slot, and in a setting of the session that it was made there: what claims it may follow. A
-- slot of the same name that somebody else made is not claimed then.
-- Privileges: REPLICATION. Versions: 14 to 18; `failover` since 17.
select pg_catalog.set_config('{made}', slot.slot_name::text, false)
  from pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput'{options}) as slot
