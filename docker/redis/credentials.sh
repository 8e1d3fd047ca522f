#!/bin/sh
# Write credentials for Redis into folder $1, unless they are there: `password` of the user `msf`, and `users.acl` with its
# hash and rights. `msf` can use msf-serve's keys and its Lua functions, and do nothing to the server or to other keys;
# without a password one can only ping.
set -eu
folder=$1
[ -s "$folder/users.acl" ] && exit 0
password=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
hash=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
printf %s "$password" > "$folder/password"
cat > "$folder/users.acl" <<ACL
user default on nopass resetkeys resetchannels -@all +ping
user msf on #$hash resetkeys ~{msf}:* resetchannels +@all -@admin -@dangerous +info
ACL
