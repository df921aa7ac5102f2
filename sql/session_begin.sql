-- Brings a session into its state (sql/session.sql), in a transaction that waits for nobody: with
-- the role's own settings it might be a serializable and deferrable one.
-- Privileges: none. Versions: 14 to 18.
begin isolation level read committed, not deferrable;
{state};
commit
