//! The names of findings. No finding is known by its text: what follows from one is asked of its
//! code here, and that each has a cure is the compiler's business.

use serde::Serialize;

/// Each with its name, and what is to be done about it where a finding says nothing of its own.
macro_rules! codes {
    ($($code:ident, $name:literal, $cure:literal;)+) => {
        /// A name of findings for programs; it stays the same over versions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Code {
            $(
                #[doc = concat!("`", $name, "`.")]
                #[serde(rename = $name)]
                $code,
            )+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$code),+];

            /// The name.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$code => $name,)+
                }
            }

            /// Says what is to be done about such a finding, whatever brings it about.
            #[must_use]
            pub fn cure(self) -> &'static str {
                match self {
                    $(Code::$code => $cure,)+
                }
            }
        }
    };
}

codes! {
    CatalogUnreadable, "catalog_unreadable",
        "ask again; if it stays, see what the server's log says of the statement";
    ChangedUnknown, "changed_unknown",
        "set `replica identity full` on the table, if such updates are many";
    ColumnList, "column_list",
        "take the column list out of the publication";
    ColumnMissing, "column_missing",
        "name a column that the table has";
    ColumnNotPublished, "column_not_published",
        "publish the whole table";
    ConditionType, "condition_type",
        "compare the column with a value of its own kind";
    ConditionUnknown, "condition_unknown",
        "set `replica identity full` on the table, if that removes too much";
    DeleteWidens, "delete_widens",
        "set `replica identity full` on the table, if it has many deletes";
    EventTriggersOff, "event_triggers_off",
        "set `event_triggers = on`";
    FailoverNotSynced, "failover_not_synced",
        "let the standby keep a copy of the slot: see `sync_replication_slots`";
    FailoverNotYet, "failover_not_yet",
        "nothing is to be done: it becomes one with the next session";
    FailoverOrphan, "failover_orphan",
        "drop the slot of that name on the standby";
    FailoverStandbyAbsent, "failover_standby_absent",
        "start that standby, or take it out of `synchronized_standby_slots`";
    FailoverUnknown, "failover_unknown",
        "name the standbys in `postgres.replicas`";
    FailoverVersion, "failover_version",
        "leave `postgres.failover` out";
    GeneratedColumn, "generated_column",
        "name the columns that it is generated from";
    FullIdentityRefused, "full_identity_refused",
        "publish the whole table there, or give it another replica identity";
    GeneratedIdentity, "generated_identity",
        "take another replica identity";
    HeirPublished, "heir_published",
        "nothing is to be done: `walsweep setup` takes it out";
    IdleSlotTimeout, "idle_slot_timeout",
        "raise `idle_replication_slot_timeout`";
    InRecovery, "in_recovery",
        "let `postgres.url` name the primary";
    Inheritance, "inheritance",
        "add a rule for each table that inherits";
    LeaseLoaded, "lease_loaded",
        "nothing is to be done";
    LeaseOutdated, "lease_outdated",
        "`walsweep setup --lease` loads them anew";
    ListenInUse, "listen_in_use",
        "choose another `http.listen`, or \"\" for none";
    ListenRunning, "listen_running",
        "nothing is to be done";
    LookupColumn, "lookup_column",
        "name a column that the query gives";
    LookupFails, "lookup_fails",
        "nothing is to be done if it passes: until then the keys that name it are widened";
    LookupIdentity, "lookup_identity",
        "set `replica identity full` on the table";
    LookupIndex, "lookup_index",
        "create an index that begins with the column that is compared";
    LookupLocked, "lookup_locked",
        "nothing is to be done: it is tried again";
    LookupNotCached, "lookup_not_cached",
        "nothing is to be done: its rows are asked for anew";
    LookupParams, "lookup_params",
        "name one column in `params` for each of `$1`, `$2` and so on";
    LookupPrivilege, "lookup_privilege",
        "grant the role `select` on what the query reads";
    LookupSlow, "lookup_slow",
        "create an index that the query can use";
    LookupSql, "lookup_sql",
        "write one SELECT that finds its row by `$1`, `$2` and so on";
    LookupTypes, "lookup_types",
        "cast in the query, so that it takes each value of the column";
    LookupWrites, "lookup_writes",
        "a lookup only reads: take out what writes";
    Narrowed, "narrowed",
        "publish the whole table";
    NoIdentity, "no_identity",
        "give the table a primary key, or `replica identity full`";
    OperationNotPublished, "operation_not_published",
        "let the publication publish every operation";
    PartitionAdded, "partition_added",
        "let whatever adds partitions set their replica identity, too";
    PartitionIdentity, "partition_identity",
        "give the partition the replica identity of its table";
    PartitionLeaf, "partition_leaf",
        "let the rule name the table that it is a partition of";
    PartitionMove, "partition_move",
        "let the rule look at insert, update and delete";
    PartitionRoot, "partition_root",
        "set `publish_via_partition_root` for the publication";
    PartitionTruncate, "partition_truncate",
        "nothing is to be done if partitions are not truncated alone";
    PassfileIgnored, "passfile_ignored",
        "mend that, or name another file by `passfile`";
    Pooler, "pooler",
        "let the URL name the server itself";
    PostgresHost, "postgres_host",
        "mend that host, or take it out of the URL";
    PostgresLogin, "postgres_login",
        "see that the server lets the role in: pg_hba.conf, TLS, its password";
    PostgresUnreachable, "postgres_unreachable",
        "see that Postgres runs, and that `postgres.url` names it";
    PublicationAllTables, "publication_all_tables",
        "nothing is to be done";
    PublicationForeign, "publication_foreign",
        "nothing is to be done: walsweep does not change it";
    PublicationMemory, "publication_memory",
        "nothing is to be done";
    PublicationMissing, "publication_missing",
        "create the publication";
    PublicationOwner, "publication_owner",
        "let the owner of the tables own the publication, too";
    PublicationYounger, "publication_younger",
        "nothing is to be done: `run` begins with a new slot where it has to";
    RedisCluster, "redis_cluster",
        "write `mode = \"cluster\"` where `redis.url` names a node of a cluster, and only there";
    RedisCommand, "redis_command",
        "let the server have that command, under its own name";
    RedisDatabase, "redis_database",
        "let `redis.url` end with the number of the database that the application uses";
    RedisEviction, "redis_eviction",
        "choose another `maxmemory-policy`, or give Redis more memory";
    RedisInfo, "redis_info",
        "let the endpoint have INFO, or let `redis.url` name the server itself";
    RedisKeyPermission, "redis_key_permission",
        "let the user remove the keys of the rule";
    RedisLogin, "redis_login",
        "see `redis.url`, `redis.password_file` or `redis.password_command`, and the server's ACL";
    RedisPass, "redis_pass",
        "use exact keys where you can: patterns need a pass";
    RedisPermission, "redis_permission",
        "give the user that right";
    RedisRefused, "redis_refused",
        "see what the server's log says; `run` tries again until it is over";
    RedisReplica, "redis_replica",
        "let `redis.url` name the primary";
    RedisReplicas, "redis_replicas",
        "see that the replicas follow, or lower `redis.wait_replicas`";
    RedisScan, "redis_scan",
        "let `redis.url` name the servers themselves, with `mode = \"cluster\"` where they are one";
    RedisScripts, "redis_scripts",
        "let the server have EVAL, under its own name";
    RedisSentinels, "redis_sentinels",
        "see that each of `redis.sentinels` runs and answers, and that all are listed";
    RedisShards, "redis_shards",
        "let `redis.url` name the servers themselves, or live with the sweeps";
    RedisTracking, "redis_tracking",
        "set `refill.observe` and `sweep.index` to false";
    RedisTwice, "redis_twice",
        "keep one of the targets, or give one another `prefix`";
    RedisUnreachable, "redis_unreachable",
        "see that Redis runs, and that `redis.url` names it";
    RedisVersion, "redis_version",
        "walsweep needs a later version of Redis";
    RefreshTrigger, "refresh_trigger",
        "`walsweep setup` makes the event trigger anew";
    RefreshTriggerForeign, "refresh_trigger_foreign",
        "give that trigger another name, or let `postgres.slot` have another";
    ReplicaFollows, "replica_follows",
        "nothing is to be done";
    ReplicaIdentity, "replica_identity",
        "set `replica identity full` on the table, or declare the column `immutable`";
    ReplicaNotStandby, "replica_not_standby",
        "let `postgres.replicas` name standbys alone";
    ReplicaOtherSystem, "replica_other_system",
        "let `postgres.replicas` name standbys of this primary";
    ReplicaOtherTimeline, "replica_other_timeline",
        "let that standby follow the primary, or take it out of the list";
    ReplicaPrivileges, "replica_privileges",
        "see that the standby lets the role in";
    ReplicaUnreachable, "replica_unreachable",
        "see that the standby runs, or take it out of `postgres.replicas`";
    ReplicationLogin, "replication_login",
        "see that pg_hba.conf has a line for replication of this role";
    ReplicationPrimary, "replication_primary",
        "let `postgres.replication_url` name a standby";
    ReplicationRole, "replication_role",
        "give the role the attribute `replication`";
    ReplicationSlotsFull, "replication_slots_full",
        "raise `max_replication_slots`";
    ReplicationStandby, "replication_standby",
        "let `postgres.replication_url` name the primary";
    ReplicationUnreachable, "replication_unreachable",
        "see that Postgres runs, and that the URL names it";
    RowFilter, "row_filter",
        "publish the table without a row filter";
    SecretReadable, "secret_readable",
        "let nobody but its owner read the file";
    ServerVersion, "server_version",
        "walsweep needs a later version of Postgres";
    SlotActive, "slot_active",
        "nothing is to be done";
    SlotDatabase, "slot_database",
        "let `postgres.slot` name another slot";
    SlotGone, "slot_gone",
        "forget it by `walsweep teardown` with that `postgres.slot`";
    SlotKeepUnlimited, "slot_keep_unlimited",
        "set `max_slot_wal_keep_size`";
    SlotLost, "slot_lost",
        "nothing is to be done: `run` creates it anew";
    SlotMissing, "slot_missing",
        "nothing is to be done: `run` creates it";
    SlotNotOwn, "slot_not_own",
        "let `postgres.slot` name another slot, or drop it if nobody needs it";
    SlotOnPrimary, "slot_on_primary",
        "drop the slot on the primary";
    SlotPlugin, "slot_plugin",
        "let `postgres.slot` name another slot";
    SlotSynced, "slot_synced",
        "let `postgres.slot` name another slot";
    SlotTemporary, "slot_temporary",
        "let `postgres.slot` name another slot";
    SlotTwoPhase, "slot_two_phase",
        "let `postgres.slot` name another slot";
    SlotUnclaimed, "slot_unclaimed",
        "let `postgres.slot` name another slot, or drop it if nobody needs it";
    SlotUnread, "slot_unread",
        "start the walsweep that reads it, or drop it by `walsweep teardown` with its name";
    SlotUnreserved, "slot_unreserved",
        "let walsweep catch up, or raise `max_slot_wal_keep_size`";
    SlotWaits, "slot_waits",
        "end the prepared transactions";
    StandbyFeedback, "standby_feedback",
        "set `hot_standby_feedback` to `on` there";
    StandbyPrimarySlot, "standby_primary_slot",
        "set `primary_slot_name` there";
    StandbySnapshot, "standby_snapshot",
        "let the role call `pg_log_standby_snapshot`";
    StandbyVersion, "standby_version",
        "let the slot be on the primary";
    StandbyWalLevel, "standby_wal_level",
        "set `wal_level = logical` on the standby, too";
    StartSweeps, "start_sweeps",
        "nothing is to be done";
    Superuser, "superuser",
        "let `postgres.url` name a role that is no superuser";
    SynchronousCommit, "synchronous_commit",
        "set it to `on` for those who write cached tables";
    TableKind, "table_kind",
        "let the rule name an ordinary table: the log has no changes of this one";
    TableMissing, "table_missing",
        "name a table that there is";
    TableNotPublished, "table_not_published",
        "add the table to the publication";
    TableUnneeded, "table_unneeded",
        "nothing is to be done: `walsweep setup` takes it out";
    TwoServers, "two_servers",
        "let both URLs name the same primary";
    ViewKind, "view_kind",
        "let the rule name a materialized view";
    ViewMissing, "view_missing",
        "name a materialized view that there is";
    WalLevel, "wal_level",
        "set `wal_level = logical`, and restart Postgres";
    WalSendersFull, "wal_senders_full",
        "raise `max_wal_senders`";
}

impl Code {
    /// Whether such an error is over by itself: a server that is down, or busy with itself.
    pub(super) fn is_waited_for(self) -> bool {
        matches!(
            self,
            Code::CatalogUnreadable
                | Code::PostgresUnreachable
                | Code::RedisRefused
                | Code::RedisUnreachable
                | Code::ReplicationUnreachable
        )
    }

    /// Whether a rule goes on in spite of such an error, for it leaves no key.
    pub(super) fn goes_on(self) -> bool {
        matches!(self, Code::PartitionIdentity | Code::RedisKeyPermission | Code::RedisScan)
    }

    /// Whether it is about room for another slot and its sender.
    pub(super) fn is_headroom(self) -> bool {
        matches!(self, Code::ReplicationSlotsFull | Code::WalSendersFull)
    }

    /// Whether it comes of the trials of lookups, or of what stands around them.
    #[must_use]
    pub fn is_of_lookup(self) -> bool {
        matches!(
            self,
            Code::LookupColumn
                | Code::LookupFails
                | Code::LookupIdentity
                | Code::LookupIndex
                | Code::LookupLocked
                | Code::LookupNotCached
                | Code::LookupParams
                | Code::LookupPrivilege
                | Code::LookupSlow
                | Code::LookupSql
                | Code::LookupTypes
                | Code::LookupWrites
        )
    }

    /// Whether removals by such a Redis count for nothing.
    pub(super) fn spoils_redis(self) -> bool {
        matches!(
            self,
            Code::RedisUnreachable | Code::RedisReplica | Code::RedisCluster | Code::RedisVersion
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Code;
    use crate::preflight::Finding;

    /// Whoever reads of something wrong reads what to do, if only that it is nothing.
    #[test]
    fn every_error_and_warning_has_a_cure() {
        for code in Code::ALL.iter().copied() {
            for finding in [Finding::error(code, "wrong"), Finding::warning(code, "wrong")] {
                let hint = finding.hint.expect("a cure");
                assert!(hint.len() > 10 && !hint.ends_with('.'), "{code:?}: {hint}");
                assert!(!hint.starts_with(char::is_uppercase), "{code:?}: {hint}");
            }
            assert_eq!(Finding::info(code, "so it is").hint, None, "{code:?}");
        }
    }

    #[test]
    fn names_are_those_of_the_codes_and_none_is_there_twice() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL.iter().copied() {
            let plain = code.as_str().replace('_', "");
            assert_eq!(format!("{code:?}").to_lowercase(), plain);
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert_eq!(code.is_of_lookup(), plain.starts_with("lookup"), "{code:?}");
        }
    }
}
