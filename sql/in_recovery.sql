-- Whether the server is a standby, asked where a URL names several hosts.
-- Privileges: none (pg_is_in_recovery is open to all by default). Versions: 14 and later.
-- Also asked over a replication connection, which takes no parameters.
select pg_catalog.pg_is_in_recovery()
