-- Lets the server end a statement whose client is gone. Privileges: none. Versions: 14 and later,
-- on systems that can tell; elsewhere it is refused, and statement_timeout has to do.
set client_connection_check_interval = '500ms'
