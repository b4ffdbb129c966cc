"""The scripts that Redis runs for the queue, each as one step that no other command interrupts.

Knows the streams, the sets and the markers of the queue. Must never know what a job is about: a job is a text here.
"""

from __future__ import annotations

#: Queue a job, unless its marker shows that it is queued already, or too many jobs wait. KEYS stream, marker, later;
#: ARGV the job, the seconds until the marker expires, the number of jobs that may wait.
PUT = """
if redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[3]) < tonumber(ARGV[3])
    and redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[2]) then
  redis.call('XADD', KEYS[1], '*', 'job', ARGV[1])
end
"""

#: Forget workers that are gone. Each start of a worker adds a consumer to its groups. KEYS stream; ARGV group,
#: milliseconds since a consumer's last command. One that still has a claim stays, until another worker takes it over.
FORGET_WORKERS = """
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
"""

#: Remove a job that succeeded. KEYS stream, marker; ARGV group, id.
DONE = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
"""

#: Queue a failed job for a later try. KEYS stream, later (a sorted set of jobs by the time of their next try); ARGV
#: group, id, that time in seconds since the epoch, the job with this try counted.
LATER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: Set a job aside. KEYS stream, dead (the stream of such jobs), marker; ARGV group, id, the job, the reason, the time
#: in seconds since the epoch, the number of such jobs to keep.
BURY = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'job', ARGV[3], 'why', ARGV[4], 'at', ARGV[5])
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[3])
"""

#: Hand a job back. KEYS stream; ARGV group, id, the job.
HAND_BACK = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 1 then redis.call('XADD', KEYS[1], '*', 'job', ARGV[3]) end
redis.call('XDEL', KEYS[1], ARGV[2])
"""

#: Record that a worker runs, in the keys from KEYS[3] on, until a claim would expire: ARGV[1], in milliseconds. A Redis
#: that is out of memory refuses SET as the first change of a script. So PEXPIRE comes first, and a refusal of SET does
#: not end the script, since taking jobs frees memory.
_NOTE_WORKER = """
for i = 3, #KEYS do
  if redis.call('PEXPIRE', KEYS[i], ARGV[1]) == 0 then redis.pcall('SET', KEYS[i], '1', 'PX', ARGV[1]) end
end
"""

#: Claim jobs. KEYS stream, later, the keys for `_NOTE_WORKER`; ARGV claim (in milliseconds), group, consumer, count,
#: now, the id to search from for expired claims, the latest time that a next try can have. Creates the group, which a
#: Redis that is new or has lost its data does not have; moves jobs whose next try is due into the stream, or those with
#: a later time than that, since a clock was wrong then; takes over jobs whose claim has expired; then reads new ones. A
#: claim of the future, since Redis's own clock was ahead, has an age of 0 and would keep it. It becomes a claim of now.
TAKE = f"""{_NOTE_WORKER}
if redis.call('EXISTS', KEYS[1]) == 0 or #redis.call('XINFO', 'GROUPS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], '0', 'MKSTREAM')
end
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[5], 'LIMIT', 0, 100)
if #due == 0 then due = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[7], '+inf', 'LIMIT', 0, 100) end
for _, job in ipairs(due) do
  redis.call('XADD', KEYS[1], '*', 'job', job)
  redis.call('ZREM', KEYS[2], job)
end
for _, held in ipairs(redis.call('XPENDING', KEYS[1], ARGV[2], '-', '+', 100)) do
  if held[3] == 0 then redis.call('XCLAIM', KEYS[1], ARGV[2], held[2], 0, held[1], 'IDLE', 0, 'JUSTID') end
end
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[2], ARGV[3], ARGV[1], ARGV[6], 'COUNT', ARGV[4])
local entries, count = claimed[2], tonumber(ARGV[4])
if #entries < count then
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', count - #entries, 'STREAMS', KEYS[1], '>')
  for _, entry in ipairs(read and read[1][2] or {{}}) do entries[#entries + 1] = entry end
end
return {{claimed[1], entries}}
"""

#: Renew a claim. KEYS stream, later, the keys for `_NOTE_WORKER`; ARGV claim (in milliseconds), group, consumer, id.
RENEW = f"""{_NOTE_WORKER}
redis.call('XCLAIM', KEYS[1], ARGV[2], ARGV[3], 0, ARGV[4], 'JUSTID')
"""

#: Queue a job again that was set aside. KEYS dead, stream, marker; ARGV id, the job, the seconds until the marker
#: expires.
REVIVE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('SET', KEYS[3], '1', 'NX', 'EX', ARGV[3]) then redis.call('XADD', KEYS[2], '*', 'job', ARGV[2]) end
return 1
"""

#: Queue a job now that waits for its next try. KEYS stream, later, marker; ARGV the job as it waits, the job to queue,
#: the seconds until the marker expires.
HURRY = """
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('SET', KEYS[3], '1', 'EX', ARGV[3])
redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
return 1
"""

#: Count the jobs. KEYS dead, then for each stream: the stream, its set `later`, and the key that shows a worker for it.
#: An entry's id begins with the time when it was added, in milliseconds on Redis's clock. The age is computed on that
#: clock, so that no other clock matters.
STATE = """
local waiting, later, unattended, oldest = 0, 0, 0, -1
for i = 2, #KEYS, 3 do
  local queued, due = redis.call('XLEN', KEYS[i]), redis.call('ZCARD', KEYS[i + 1])
  waiting, later = waiting + queued, later + due
  if redis.call('EXISTS', KEYS[i + 2]) == 0 then unattended = unattended + queued + due end
  local first = redis.call('XRANGE', KEYS[i], '-', '+', 'COUNT', 1)[1]
  local added = first and tonumber(string.match(first[1], '^%d+'))
  if added and (oldest < 0 or added < oldest) then oldest = added end
end
local time = redis.call('TIME')
local age = oldest < 0 and 0 or time[1] * 1000 + math.floor(time[2] / 1000) - oldest
return {waiting, later, redis.call('XLEN', KEYS[1]), unattended, age}
"""
