-- The message of a probe: part of its transaction, so that a running walsweep removes the canary
-- when that is visible. $1 is the nonce.
-- Privileges: EXECUTE on the function, which everybody has by default. Versions: 14 to 18.
-- Writes a record of some 60 bytes to the log, and takes a transaction id; no lock.
select pg_logical_emit_message(true, 'walsweep.probe', $1::text)
