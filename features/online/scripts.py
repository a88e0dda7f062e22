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

# KEYS: events, backlog bytes, records, rows pushed lately. ARGV: most bytes that may wait, bytes of
# this entry, payload ('' for none), name of the record, the record as the writer left it ('' for
# none), the new one, the created time before which rows are forgotten ('' for none), then created
# time and fingerprint of each row in turn.
# Returns the new entry's id ('' for none), or (as a number) how many bytes wait already; or, where
# the record is not what the writer left, what stands there, in a list: then nothing was done.
# ZADD in a loop, as unpack fails near 4,000.
FEED = Script("""
local call = redis.call
local found = call('HGET', KEYS[3], ARGV[4]) or ''
if found ~= ARGV[5] then return {found} end
local id = ''
if ARGV[3] ~= '' then
  local waiting = tonumber(call('GET', KEYS[2]) or '0')
  if waiting + tonumber(ARGV[2]) > tonumber(ARGV[1]) then return waiting end
  call('INCRBY', KEYS[2], ARGV[2])
  id = call('XADD', KEYS[1], '*', 'b', ARGV[3])
end
call('HSET', KEYS[3], ARGV[4], ARGV[6])
for i = 8, #ARGV, 2 do call('ZADD', KEYS[4], ARGV[i], ARGV[i + 1]) end
if ARGV[7] ~= '' then call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[7]) end
return id
""")

# KEYS: checkpoint, catalog, start of the log, fills. ARGV: epoch, id for a new store, whether it
# may be set up ('1' or '0'), the smallest sequence for a stream that the archive does not know, the
# id of the store that it knows, whether there is an archive ('1' or '0'); then for each view its
# hash, its schema id, and whether its source has a history ('1' or '0').
# A view that is not in the catalog gets there, unless it has to be filled first: its source has a
# history, or will have one of what is in the log.
# Returns the checkpoint as it now stands; untouched where its epoch is newer; nil where it is
# missing and may not be set up.
TAKE_OVER = Script("""
local call = redis.call
local found = call('GET', KEYS[1])
local start = call('GET', KEYS[3])
local id, epoch, offset, sequence
if found then
  id, epoch, offset, sequence = string.match(found, '^(%w+):(%d+):(%d+%-%d+):(%d+)$')
  if not id or tonumber(epoch) > tonumber(ARGV[1]) then return found end
  local empty = not start or start == offset .. ':' .. sequence
  if empty and id ~= ARGV[5] and tonumber(sequence) < tonumber(ARGV[4]) then
    sequence = ARGV[4]
    start = false
  end
elseif ARGV[3] == '1' then
  id, offset, sequence = ARGV[2], '0-0', ARGV[4]
  start = false
else
  return false
end
local mine = id .. ':' .. ARGV[1] .. ':' .. offset .. ':' .. sequence
call('SET', KEYS[1], mine)
if not start then call('SET', KEYS[3], offset .. ':' .. sequence) end
local in_log = ARGV[6] == '1' and tonumber(sequence) > tonumber(ARGV[4])
for i = 7, #ARGV, 3 do
  local view, schema_id = ARGV[i], ARGV[i + 1]
  if call('HEXISTS', KEYS[4], view) == 0 then
    if call('HEXISTS', KEYS[2], view) == 0 and (in_log or ARGV[i + 2] == '1') then
      call('HSET', KEYS[4], view, schema_id .. ':' .. sequence .. ':waits:0:0')
    else
      call('HSET', KEYS[2], view, schema_id)
    end
  end
end
return mine
""")

# What WRITE and FILL do to rows, from KEYS[i] and ARGV[at] on: for each group of rows their number,
# their time to live in ms, a step and their values. Step 0 sets a row (time to live 0: for ever);
# above, the value is appended (time to live 0: it keeps its own), and the row is returned where its
# length has passed a multiple of the step; below, the value replaces the first -step bytes of the
# row, which keeps its own (a row that has expired meanwhile does not come back).
# SET in a loop, as unpack fails near 4,000 keys.
_CHANGE_ROWS = """
local long = {}
while i <= #KEYS do
  local ttl, step = ARGV[at + 1], tonumber(ARGV[at + 2])
  local last = i + tonumber(ARGV[at]) - 1
  at = at + 3
  for key = i, last do
    local name, value = KEYS[key], ARGV[at]
    if step > 0 then
      if call('APPEND', name, value) % step < #value then
        long[#long + 1] = key
        long[#long + 1] = call('GET', name)
      end
      if ttl ~= '0' then call('PEXPIRE', name, ttl) end
    elseif step < 0 then
      if call('STRLEN', name) >= -step then
        call('SET', name, value .. call('GETRANGE', name, -step, -1), 'KEEPTTL')
      end
    elseif ttl == '0' then
      call('SET', name, value)
    else
      call('SET', name, value, 'PX', ttl)
    end
    at = at + 1
  end
  i = last + 1
end
"""

# KEYS: checkpoint, events, backlog bytes, dead letters, start of the log, then the rows.
# ARGV: the checkpoint as the writer left it, the new one, the new offset, where the log begins from
# now on (empty: where it did, as somebody archives it), bytes that leave the log, the channel, most
# dead letters kept, how many come now; for each its entry, reason and payload; then the rows.
# Returns rows and the places of their keys in turn; or, where the checkpoint is not what the writer
# left, what stands there (nil for nothing): then nothing was written. Comparing the whole
# checkpoint fences older epochs and other writers, so that nobody else has written a row meanwhile.
# Trimming keeps every entry after the checkpoint; what is dead is kept as a dead letter only.
WRITE = Script(
    """
local call = redis.call
local found = call('GET', KEYS[1])
if found ~= ARGV[1] then return found end
local at = 9
for _ = 1, tonumber(ARGV[8]) do
  call('XADD', KEYS[4], 'MAXLEN', ARGV[7], '*',
    'entry', ARGV[at], 'reason', ARGV[at + 1], 'payload', ARGV[at + 2])
  call('XDEL', KEYS[2], ARGV[at])
  at = at + 3
end
local i = 6
"""
    + _CHANGE_ROWS
    + """
call('SET', KEYS[1], ARGV[2])
if ARGV[4] ~= '' then
  call('SET', KEYS[5], ARGV[4])
  call('XTRIM', KEYS[2], 'MINID', ARGV[3])
  call('XDEL', KEYS[2], ARGV[3])
end
if call('XLEN', KEYS[2]) == 0 then
  call('SET', KEYS[3], '0')
else
  call('DECRBY', KEYS[3], ARGV[5])
end
call('PUBLISH', ARGV[6], ARGV[3])
return long
"""
)

# KEYS: checkpoint, fills, catalog, then the rows. ARGV: the checkpoint, the view's hash, its mark
# as the writer left it, the new one (empty: it is filled, and comes into the catalog), its schema
# id, then the rows. Returns as WRITE does, and 0 where the mark is not what the writer left: then
# nothing was written.
FILL = Script(
    """
local call = redis.call
local found = call('GET', KEYS[1])
if found ~= ARGV[1] then return found end
if call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
local at, i = 6, 4
"""
    + _CHANGE_ROWS
    + """
if ARGV[4] == '' then
  call('HDEL', KEYS[2], ARGV[2])
  call('HSET', KEYS[3], ARGV[2], ARGV[5])
else
  call('HSET', KEYS[2], ARGV[2], ARGV[4])
end
return long
"""
)

# KEYS: checkpoint, events, backlog bytes, start of the log. ARGV: what the checkpoint must begin
# with (store and epoch), the offset up to which all is archived, bytes that leave the log, where it
# begins from now on. Returns 1, or the checkpoint (nil: none) where it does not: then nothing was
# done.
ARCHIVED = Script("""
local call = redis.call
local found = call('GET', KEYS[1])
if not found or string.sub(found, 1, #ARGV[1]) ~= ARGV[1] then return found end
call('XTRIM', KEYS[2], 'MINID', ARGV[2])
call('XDEL', KEYS[2], ARGV[2])
call('SET', KEYS[4], ARGV[4])
if call('XLEN', KEYS[2]) == 0 then
  call('SET', KEYS[3], '0')
else
  call('DECRBY', KEYS[3], ARGV[3])
end
return 1
""")
