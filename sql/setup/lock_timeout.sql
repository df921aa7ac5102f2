-- How long the statements that follow may wait for a lock. Privileges: none. Versions: 14 to 18.
set lock_timeout = '{timeout}'
