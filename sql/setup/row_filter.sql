-- The rows of a table that are published, behind its name and columns: those of the condition. The
-- second part is never true; it tells that walsweep wrote the filter, and from which condition.
-- Privileges: see the statements that it is a part of. Versions: 15 to 18.
where ({condition} or '{mark}'::pg_catalog.text is null)
