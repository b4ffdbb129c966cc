"""The scripts that Redis runs for the catalog, each as one step that no other command interrupts.

Knows the hashes, the sets and the records of the catalog. Must never know what a page means.
"""

from __future__ import annotations

#: A function that notes a record as the latest of its kind, and deletes the oldest ones if there are too many. Its
#: arguments: the sorted set of the kind's records, the name, the number to keep, the prefix of the records' keys.
#: Scores are numbers in a row, since Redis's clock may be put back.
_KEEP_LATEST = """
local function keep_latest(set, name, most, prefix)
  local latest = redis.call('ZREVRANGE', set, 0, 0, 'WITHSCORES')[2] or 0
  redis.call('ZADD', set, latest + 1, name)
  local over = redis.call('ZCARD', set) - tonumber(most)
  local oldest = over > 0 and redis.call('ZPOPMIN', set, over) or {}
  for i = 1, #oldest, 2 do redis.call('DEL', prefix .. oldest[i]) end
end
"""

#: Replace a page atomically, so that no reader sees a mix of two versions. KEYS page, temporary key, the sorted set of
#: missing pages, the page's links, its new links, links to drop; ARGV seconds until the page expires (0: never), the
#: page's name, the number of missing pages to keep, the prefix of pages' keys, whether the links are replaced (1 or 0),
#: then fields and values. The new version is written to the temporary key first: if Redis is out of memory, that
#: command fails, and the old version stays. Returns the number of links to drop.
PUT = f"""{_KEEP_LATEST}
redis.call('HSET', KEYS[2], unpack(ARGV, 6))
redis.call('RENAME', KEYS[2], KEYS[1])
local kept = tonumber(ARGV[1])
if kept > 0 then
  redis.call('EXPIRE', KEYS[1], kept)
  keep_latest(KEYS[3], ARGV[2], ARGV[3], ARGV[4])
  redis.call('EXPIRE', KEYS[3], kept)
else
  redis.call('ZREM', KEYS[3], ARGV[2])
end
if ARGV[5] == '1' then
  if redis.call('EXISTS', KEYS[6]) == 0 then
    if redis.call('EXISTS', KEYS[4]) == 1 then redis.call('RENAME', KEYS[4], KEYS[6]) end
  else
    redis.call('SUNIONSTORE', KEYS[6], KEYS[6], KEYS[4])
  end
  if redis.call('EXISTS', KEYS[5]) == 1 then
    redis.call('RENAME', KEYS[5], KEYS[4])
  else
    redis.call('DEL', KEYS[4])
  end
end
return redis.call('SCARD', KEYS[6])
"""

#: Drop links of the index that their page does not list any more, some at a time. KEYS links to drop, the page's links;
#: ARGV the number, the page's name, the prefix of the index's keys. A link that leads to another page by now stays.
#: Returns the number of links that are left.
DROP_LINKS = """
for _, link in ipairs(redis.call('SPOP', KEYS[1], ARGV[1])) do
  local key = ARGV[3] .. link
  if redis.call('SISMEMBER', KEYS[2], link) == 0 and redis.call('GET', key) == ARGV[2] then redis.call('DEL', key) end
end
return redis.call('SCARD', KEYS[1])
"""

#: Replace a page's stamp. KEYS page, the sorted set of missing pages; ARGV the version that must be stored, the new
#: stamp, seconds until a page expires that has an expiry, the page's name, the number of missing pages to keep, the
#: prefix of pages' keys.
TOUCH = f"""{_KEEP_LATEST}
local stamp = redis.call('HGET', KEYS[1], 'stamp')
if stamp and cjson.decode(stamp).version == ARGV[1] then
  redis.call('HSET', KEYS[1], 'stamp', ARGV[2])
  if redis.call('TTL', KEYS[1]) >= 0 then
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    keep_latest(KEYS[2], ARGV[4], ARGV[5], ARGV[6])
    redis.call('EXPIRE', KEYS[2], ARGV[3])
  end
end
"""

#: Store one of the latest records of a kind. KEYS record, the sorted set of the kind's records; ARGV the value, the
#: record's name, the number of records to keep, the prefix of their keys.
PUT_COUNTED = f"""{_KEEP_LATEST}
redis.call('SET', KEYS[1], ARGV[1])
keep_latest(KEYS[2], ARGV[2], ARGV[3], ARGV[4])
"""

#: Mark a link of a page, and remove links whose time is over. KEYS the sorted set; ARGV now and the end of the mark, in
#: seconds since the epoch, the link, seconds until the set expires, the number of links to keep.
MARK = """
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - tonumber(ARGV[5]))
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""

#: Take a lease. KEYS lease; ARGV owner, the lease's record, milliseconds until it expires, milliseconds by which clocks
#: may differ. If another owner holds the lease, returns that owner's record and the milliseconds that are left. If more
#: are left than that owner asked for, Redis's own clock was ahead then, and the lease is over.
TAKE_LEASE = """
local held = redis.call('GET', KEYS[1])
if held then
  local record, left = cjson.decode(held), redis.call('PTTL', KEYS[1])
  if record.owner ~= ARGV[1] and left <= (record.ms or left) + ARGV[4] then return {held, left} end
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
"""

#: Release a lease, if this owner holds it. KEYS lease; ARGV owner.
RELEASE_LEASE = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
