-- Globals of Redis's script engine.
std = {read_globals = {
  'redis', 'cjson', 'KEYS', 'ARGV', 'require', 'ipairs', 'pairs', 'tonumber', 'unpack',
  math = {fields = {'max', 'floor', 'exp'}}, string = {fields = {'format', 'match'}},
  table = {fields = {'insert', 'remove', 'sort'}},
}}
max_line_length = 120
