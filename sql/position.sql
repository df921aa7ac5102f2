-- An LSN that lies behind every commit that is visible now: the end of a record written for it.
-- Privileges: none (pg_logical_emit_message is open to all by default). Versions: 14 and later.
-- Writes one record that nothing decodes to a key. pg_current_wal_insert_lsn() would not do: at the
-- end of a page it lies past the next page's header, where no replay position stands until
-- something else is written.
select pg_logical_emit_message(false, 'walsweep', '')::text
