-- Which transactions a question about the catalog sees at this moment, the oldest that it may not
-- see, and when the server's settings were last read: as long as the first and the last are as they
-- were, no catalog reads otherwise, whatever runs. What a transaction wrote shows when it ends, and
-- then it is no longer among those that run, or the next one that comes has a higher number.
-- Privileges: none. Versions: 14 to 18. Reads no table, takes no lock and no transaction id.
-- What is written in place (pg_class.relpages, relfrozenxid and the like) no look looks at.
select concat_ws(' ', pg_current_snapshot(), pg_conf_load_time()),
       (pg_snapshot_xmin(pg_current_snapshot())::text::numeric % 4294967296)::text
