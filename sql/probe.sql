-- What a probe has to know of the server before it begins: whether that is a standby, where nothing
-- can be committed; the process of the session; and a nonce, 32 hex digits.
-- Privileges: none. Versions: 14 to 18. Takes no lock and no transaction id.
select pg_is_in_recovery(), pg_backend_pid(), replace(gen_random_uuid()::text, '-', '')
