-- Arguments of the running script: its keys by name, and the values that ARGV[1] holds as JSON.
local values = cjson.decode(ARGV[1])

local by_name = {}
for position, name in ipairs(values.keys) do
  by_name[name] = KEYS[position]
end
return {keys = by_name, values = values}
