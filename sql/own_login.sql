-- Whether a session is that of walsweep's own role, $1. No other runs the query of a lookup: what
-- it calls belongs to others, and whoever sets up may do everything.
-- Privileges: none. Versions: 14 and later.
select session_user::text = $1::text
