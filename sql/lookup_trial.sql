-- Around the trial of a lookup. Privileges: none. Versions: 14 and later.
-- To parse a query takes an ACCESS SHARE lock on each table that it names, and holds it to the end
-- of the transaction, which is rolled back at once. Whoever has one of them exclusively is not
-- waited for longer than is given here.
start transaction {access};
set local statement_timeout = '3s';
set local lock_timeout = '{patience}'
