-- How long the statements that follow may wait: {timeout} for a lock, and when they commit for no
-- standby, for until then they keep their lock. What is not there on a standby yet is found missing
-- and made again. Privileges: none. Versions: 14 to 18.
set lock_timeout = '{timeout}';
set synchronous_commit = 'local'
