-- Around the trial of a lookup before the start. Privileges: none. Versions: 14 and later.
start transaction read only;
set local statement_timeout = '3s'
