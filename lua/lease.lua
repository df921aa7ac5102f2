#!lua name=walsweep_lease
-- The in-key lease: a value that was read before a removal cannot be written after it.
--
-- A reader that misses takes a lease before it asks the database, and its value is stored only if
-- the lease still stands. The lease is a marker in the key itself. Whatever removes the key removes
-- a marker like a value, and SCAN is bound to return the key at every moment from lease to value;
-- in a key beside it, a lease could be used up, and the value written, behind a running pass.
--
-- Commands: FCALL of each function below, with one key. docs/lease.md says what clients do.
-- Privileges: a reader needs `+fcall +get +set +del +time` on its keys; `walsweep setup --lease`
-- needs `+function|load`.
-- Versions: Redis 7.0 or newer, Valkey 7.2 or newer.

-- What tells a marker from a value. Clients of several versions share it: it never changes.
local MARK = '\0walsweep lease '

local function is_marker(value)
    return value and string.sub(value, 1, #MARK) == MARK
end

-- The error reply to a call that is not one; nothing if it is.
local function misuse(call, keys, args, least, most)
    if #keys ~= 1 or #args < least or #args > most then
        return redis.error_reply('ERR wrong number of keys or arguments, use: FCALL ' .. call)
    end
end

local function not_milliseconds(name, value)
    if not string.find(value, '^[1-9]%d*$') then
        local wrong = ' is not a whole number of milliseconds above 0: '
        return redis.error_reply('ERR ' .. name .. wrong .. string.sub(value, 1, 40))
    end
end

-- FCALL walsweep_lease_get 1 key token milliseconds
--
-- {'HIT', value}: here it is. {'MISS', lease}: read the database now, then set or release.
-- {'BUSY'}: another reader holds the lease, for as many milliseconds as it asked for at most; ask
-- again later. `token` is 128 random bits, new for each call.
local function get(keys, args)
    local wrong = misuse('walsweep_lease_get 1 key token milliseconds', keys, args, 2, 2)
        or not_milliseconds('the time of the lease', args[2])
    if wrong then
        return wrong
    end
    if args[1] == '' then
        return redis.error_reply('ERR the token is empty, make it 128 random bits')
    end
    local value = redis.call('GET', keys[1])
    if is_marker(value) then
        return { 'BUSY' }
    end
    if value then
        return { 'HIT', value }
    end
    -- The token alone is not enough: client libraries send a call again when its reply is late. The
    -- first one may then arrive after a removal, and would let in what was read before it.
    local now = redis.call('TIME')
    local lease = args[1] .. ':' .. now[1] .. ':' .. now[2]
    redis.call('SET', keys[1], MARK .. lease, 'PX', args[2])
    return { 'MISS', lease }
end

-- FCALL walsweep_lease_set 1 key lease value [milliseconds]
--
-- 1: stored, for so long or until it is removed. 0: refused, the lease no longer stands.
local function set(keys, args)
    local usage = 'walsweep_lease_set 1 key lease value [milliseconds]'
    local wrong = misuse(usage, keys, args, 2, 3)
        or args[3] and not_milliseconds('the time to live', args[3])
    if wrong then
        return wrong
    end
    if is_marker(args[2]) then
        return redis.error_reply('ERR the value begins like the marker of a lease')
    end
    if redis.call('GET', keys[1]) ~= MARK .. args[1] then
        return 0
    end
    if args[3] then
        redis.call('SET', keys[1], args[2], 'PX', args[3])
    else
        redis.call('SET', keys[1], args[2])
    end
    return 1
end

-- FCALL walsweep_lease_release 1 key lease
--
-- Gives a lease back that is not used, so that nobody waits for its end. 1: done. 0: it no longer
-- stood.
local function release(keys, args)
    local wrong = misuse('walsweep_lease_release 1 key lease', keys, args, 1, 1)
    if wrong then
        return wrong
    end
    if redis.call('GET', keys[1]) ~= MARK .. args[1] then
        return 0
    end
    return redis.call('DEL', keys[1])
end

redis.register_function('walsweep_lease_get', get)
redis.register_function('walsweep_lease_set', set)
redis.register_function('walsweep_lease_release', release)
