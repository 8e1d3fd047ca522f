-- Take webhooks that are due, in turn one of each tenant and of each of its hosts; unless settled, each is due again
-- after lease_s. A tenant or host of which the caller has enough under way is left for a while.
-- KEYS: webhooks
-- ARGV: limit, lease_s, under_way (each tenant, host, number)
-- → of each: id, tenant, host
local clock = require 'clock'
local tunables = require 'tunables'
local webhooks = require 'webhooks'

local TICK_S = 0.000001  -- by which one that was looked at comes behind all others

local key, args = require 'arguments'(KEYS, ARGV)
local now = clock.now()
local taken, num_looked = {}, 0
local of_tenant, of_host = {}, {}

local function add(tenant, host, number)
  local lane = webhooks.jobs(tenant, host)
  of_tenant[tenant] = (of_tenant[tenant] or 0) + number
  of_host[lane] = (of_host[lane] or 0) + number
end

local function since()
  return now + num_looked * TICK_S
end

local function first_due(set)
  local member, score = unpack(redis.call('ZRANGE', set, 0, 0, 'WITHSCORES'))
  return member and tonumber(score) <= since() and member
end

local function postpone(set, member)
  redis.call('ZADD', set, clock.stamp(now + tunables.WEBHOOK_BUSY_S), member)
end

local function take(tenant, host)
  local jobs = webhooks.jobs(tenant, host)
  local id = redis.call('ZRANGE', jobs, 0, 0)[1]
  redis.call('ZADD', jobs, clock.stamp(now + args.lease_s), id)
  add(tenant, host, 1)
  taken[#taken + 1] = {id, tenant, host}
  webhooks.refresh(tenant, host, since())
end

local function look_at(tenant)
  num_looked = num_looked + 1
  if (of_tenant[tenant] or 0) >= tunables.MAX_WEBHOOKS_OF_TENANT then
    return postpone(key.webhooks, tenant)
  end
  local host = first_due(webhooks.hosts(tenant))
  if host and (of_host[webhooks.jobs(tenant, host)] or 0) < tunables.MAX_WEBHOOKS_OF_HOST then
    return take(tenant, host)
  end
  if host then
    postpone(webhooks.hosts(tenant), host)
  end
  webhooks.refresh_tenant(tenant, since())
end

for _, entry in ipairs(args.under_way) do
  add(unpack(entry))
end
while #taken < args.limit and num_looked < 2 * tunables.MAX_WEBHOOKS_TAKEN do
  local tenant = first_due(key.webhooks)
  if not tenant then
    break
  end
  look_at(tenant)
end
return taken
