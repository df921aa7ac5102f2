-- Opens the script that walsweep prints, with the role that it can run as.
-- Privileges: a superuser runs what is commented out. Versions: 14 to 18.
What walsweep needs in this database, for psql, run by the owner of the tables.

walsweep itself needs a role that may replicate and connect, no more. A superuser creates it:

    create role {role} login replication;
    \password {role}
    grant connect on database {database} to {role};
