"""The scripts: each is one atomic step of the store; a crash finds it whole or not at all.

They touch keys of many hash slots and therefore need a store that is one node (or one primary).
"""

from __future__ import annotations

from features.online.store import Script

# KEYS: events, backlog bytes. ARGV: most bytes that may wait, bytes of this entry, payload.
# Returns the new entry's id, or (as a number) how many bytes wait already.
PUSH = Script("""
local waiting = tonumber(redis.call('GET', KEYS[2]) or '0')
if waiting + tonumber(ARGV[2]) > tonumber(ARGV[1]) then return waiting end
redis.call('INCRBY', KEYS[2], ARGV[2])
return redis.call('XADD', KEYS[1], '*', 'b', ARGV[3])
""")

# KEYS: checkpoint, catalog. ARGV: epoch, id for a new store, whether it may be set up ('1' or '0'),
# then view hash and schema id in turn.
# Returns the checkpoint as it now stands; untouched where its epoch is newer; nil where it is
# missing and may not be set up.
TAKE_OVER = Script("""
local found = redis.call('GET', KEYS[1])
local mine
if found then
  local id, epoch, rest = string.match(found, '^(%w+):(%d+):(.*)$')
  if not id or tonumber(epoch) > tonumber(ARGV[1]) then return found end
  mine = id .. ':' .. ARGV[1] .. ':' .. rest
elseif ARGV[3] == '1' then
  mine = ARGV[2] .. ':' .. ARGV[1] .. ':0-0:0'
else
  return false
end
redis.call('SET', KEYS[1], mine)
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return mine
""")

# KEYS: checkpoint, events, backlog bytes, dead letters, then the rows.
# ARGV: the checkpoint as the writer left it, the new one, the new offset, the smallest id to keep
# in the log, bytes consumed, the channel, most dead letters kept, how many come now; for each its
# entry, reason and payload; then for each row its value, its time to live in ms (0 for ever) and a
# step: 0 sets the row; above, the value is appended, and the row is returned where its length has
# passed a multiple of the step; below, the value replaces the first -step bytes of the row.
# Returns rows and their places in turn; or, where the checkpoint is not what the writer left, what
# stands there (nil for nothing): then nothing was written. Comparing the whole checkpoint fences
# older epochs and other writers, so that nobody else has written a row since this writer did.
# SET in a loop, as unpack fails near 4,000 keys. Trimming keeps every entry after the checkpoint.
WRITE = Script("""
local found = redis.call('GET', KEYS[1])
if found ~= ARGV[1] then return found end
local at = 9
for _ = 1, tonumber(ARGV[8]) do
  redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[7], '*',
    'entry', ARGV[at], 'reason', ARGV[at + 1], 'payload', ARGV[at + 2])
  at = at + 3
end
local long = {}
for i = 5, #KEYS do
  local key, value, ttl, step = KEYS[i], ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  if step > 0 then
    local length = redis.call('APPEND', key, value)
    if ttl ~= '0' then redis.call('PEXPIRE', key, ttl) end
    if length % step < #value then
      long[#long + 1] = i - 5
      long[#long + 1] = redis.call('GET', key)
    end
  else
    if step < 0 then value = value .. redis.call('GETRANGE', key, -step, -1) end
    if ttl == '0' then
      redis.call('SET', key, value)
    else
      redis.call('SET', key, value, 'PX', ttl)
    end
  end
  at = at + 3
end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[4])
if redis.call('XLEN', KEYS[2]) == 0 then
  redis.call('SET', KEYS[3], '0')
else
  redis.call('DECRBY', KEYS[3], ARGV[5])
end
redis.call('PUBLISH', ARGV[6], ARGV[3])
return long
""")
