-- Webhooks that are not settled: tenants → their hosts → jobs, each by the time at which to look at it. One receiver
-- that does not answer thus holds up neither the tenant's other hosts nor another tenant.
local clock = require 'clock'
local keys = require 'keys'

local webhooks = {}

function webhooks.hosts(tenant)
  return keys.WEBHOOK_HOSTS .. tenant
end

function webhooks.jobs(tenant, host)
  return keys.WEBHOOK_JOBS .. #tenant .. ':' .. tenant .. ':' .. host
end

-- Set the score of `member` in `set` to the lowest score in `children`, but no less than `since`; remove it with them.
local function follow(set, member, children, since)
  local first = redis.call('ZRANGE', children, 0, 0, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', set, clock.stamp(math.max(first, since)), member)
  else
    redis.call('ZREM', set, member)
  end
end

-- Look at a tenant when the first of its hosts is to be looked at, but not before `since`.
function webhooks.refresh_tenant(tenant, since)
  follow(keys.WEBHOOKS, tenant, webhooks.hosts(tenant), since)
end

-- Look at a tenant and its host when the first of the host's jobs is due, but not before `since`.
function webhooks.refresh(tenant, host, since)
  follow(webhooks.hosts(tenant), host, webhooks.jobs(tenant, host), since)
  webhooks.refresh_tenant(tenant, since)
end

-- Make a job's webhook due at a time, for the first time or again.
function webhooks.schedule(tenant, host, id, due_at)
  if redis.call('ZADD', webhooks.jobs(tenant, host), clock.stamp(due_at), id) == 1 then
    redis.call('HINCRBY', keys.WEBHOOK_COUNTS, tenant, 1)
  end
  webhooks.refresh(tenant, host, 0)
end

function webhooks.remove(tenant, host, id)
  if redis.call('ZREM', webhooks.jobs(tenant, host), id) == 1
    and redis.call('HINCRBY', keys.WEBHOOK_COUNTS, tenant, -1) == 0 then
    redis.call('HDEL', keys.WEBHOOK_COUNTS, tenant)
  end
  webhooks.refresh(tenant, host, 0)
end

-- Return the number of a tenant's webhooks that are not settled.
function webhooks.count(tenant)
  return tonumber(redis.call('HGET', keys.WEBHOOK_COUNTS, tenant) or 0)
end

return webhooks
