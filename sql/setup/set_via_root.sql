-- Publishes changes of partitions under the name of the partitioned table.
-- Privileges: owner of the publication. Versions: 14 to 18.
alter publication {publication} set (publish_via_partition_root = true)
