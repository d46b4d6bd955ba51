"""What the Valkey server does in one step: Lua, so that nothing comes between a look and a write.

A session is a hash: `e` the epoch of whoever has taken it last, `v` the value, `w` the epoch under which that was
written, and `l:<id>` for each turn that was left beside it. What is no hash, or has an epoch that is none, is not ours.
"""

from __future__ import annotations

# In doubles, as Lua has them, whole numbers are exact up to 9e15: microseconds until the year 2255. In milliseconds two
# servers could have the same epoch where the store forgot the session between them.
_COMMON = """
local key = KEYS[1]
local foreign = 0
local kind = redis.call('TYPE', key)['ok']
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key); foreign = 1 end
local function epoch()
    local found = redis.call('HGET', key, 'e')
    local number = tonumber(found or '0')
    if number == nil or number ~= number or number < 0 or number > 9e15 then return 0 end
    return math.floor(number)
end
local function left()
    local found = {}
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
        if string.sub(all[i], 1, 2) == 'l:' then
            found[#found + 1] = string.sub(all[i], 3)
            found[#found + 1] = all[i + 1]
        end
    end
    return found
end
"""

# ARGV: milliseconds to live. Returns foreign, epoch, value, epoch of the value, turns.
TAKE = (
    _COMMON
    + """
local time = redis.call('TIME')
local mine = math.max(epoch() + 1, time[1] * 1000000 + time[2])
redis.call('HSET', key, 'e', string.format('%.0f', mine))
redis.call('PEXPIRE', key, ARGV[1])
return {foreign, string.format('%.0f', mine), redis.call('HGET', key, 'v'), redis.call('HGET', key, 'w'), left()}
"""
)

# Returns value, epoch of the value, turns, epoch.
LOOK = """
if redis.call('TYPE', KEYS[1])['ok'] ~= 'hash' then return {false, false, {}, false} end
local key = KEYS[1]
local found = {}
local all = redis.call('HGETALL', key)
for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'l:' then
        found[#found + 1] = string.sub(all[i], 3)
        found[#found + 1] = all[i + 1]
    end
end
return {redis.call('HGET', key, 'v'), redis.call('HGET', key, 'w'), found, redis.call('HGET', key, 'e')}
"""

# All writes of a round, as one command: that costs its client a fraction of as many commands.
# KEYS: places. ARGV: milliseconds to live; epoch, whether there is a value, number of merged turns, of all places in
# one argument, since each costs its client something; then of each place the value, and the ids of its merged turns.
# Returns a digit for each place, 1 where it was accepted; then, for each beside which turns lie, its number and these.
WRITE = """
local function epoch(key)
    local number = tonumber(redis.call('HGET', key, 'e') or '0')
    if number == nil or number ~= number or number < 0 or number > 9e15 then return 0 end
    return math.floor(number)
end
local function left(key)
    local found = {}
    local all = redis.call('HGETALL', key)
    for i = 1, #all, 2 do
        if string.sub(all[i], 1, 2) == 'l:' then
            found[#found + 1] = string.sub(all[i], 3)
            found[#found + 1] = all[i + 1]
        end
    end
    return found
end
local digits, answers, at = {}, {''}, 3
local heads = string.gmatch(ARGV[2], '(%d+) (%d) (%d+)')
for number, key in ipairs(KEYS) do
    local mine, there, count = heads()
    local value, merged = ARGV[at], tonumber(count)
    local kind = redis.call('TYPE', key)['ok']
    if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
    if epoch(key) > tonumber(mine) then
        digits[number] = '0'
    else
        digits[number] = '1'
        if there == '1' then
            redis.call('HSET', key, 'e', mine, 'w', mine, 'v', value)
        else
            redis.call('DEL', key)
            redis.call('HSET', key, 'e', mine)
        end
        for i = at + 1, at + merged do redis.call('HDEL', key, 'l:' .. ARGV[i]) end
        redis.call('PEXPIRE', key, ARGV[1])
        if redis.call('HLEN', key) > 3 then
            answers[#answers + 1] = number
            answers[#answers + 1] = left(key)
        end
    end
    at = at + 1 + merged
end
answers[1] = table.concat(digits)
return answers
"""

# ARGV: milliseconds to live, id, value, most turns. Returns a digit, 1 where it was accepted.
LEAVE = (
    _COMMON
    + """
if redis.call('HLEN', key) >= tonumber(ARGV[4]) + 3 then return {'0'} end
redis.call('HSETNX', key, 'l:' .. ARGV[2], ARGV[3])
redis.call('PEXPIRE', key, ARGV[1])
return {'1'}
"""
)

# Does what all of the others do, and leaves nothing behind.
PROBE = (
    _COMMON
    + """
redis.call('HSETNX', key, 'e', '0')
redis.call('HSET', key, 'e', epoch(), 'l:', redis.call('TIME')[1])
redis.call('PEXPIRE', key, ARGV[1])
redis.call('HDEL', key, 'l:')
local found = {redis.call('HGET', key, 'e'), redis.call('HLEN', key), left()}
redis.call('DEL', key)
return found
"""
)

ALL = (TAKE, LOOK, WRITE, LEAVE, PROBE)
