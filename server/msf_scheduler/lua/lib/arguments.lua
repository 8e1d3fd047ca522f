-- Return the arguments of a command: its keys by name, and the values that ARGV[1] holds as JSON.
return function(KEYS, ARGV)
  local values = cjson.decode(ARGV[1])
  local keys = {}
  for position, name in ipairs(values.keys) do
    keys[name] = KEYS[position]
  end
  return keys, values
end
