-- The slot; in a transaction of its own.
-- Privileges: REPLICATION. Versions: 14 to 18; `failover` since 17.
select pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput'{options})
