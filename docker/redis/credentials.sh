#!/bin/sh
# Write credentials for Redis into folder $1: `password` of the user `msf`, unless it is there, and `users.acl` with its
# hash and rights. `msf` can use msf-serve's keys and its Lua functions, and do nothing to the server or to other keys;
# `probe` can only ping. Nobody can log in as `default`, but it has every right: with fewer, Redis 7 drops the
# transactions of its append-only file when it starts (github.com/redis/redis/issues/14541), and all jobs with them.
set -eu
folder=$1
[ -s "$folder/password" ] || head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$folder/password"
hash=$(sha256sum < "$folder/password" | cut -d ' ' -f 1)
cat > "$folder/users.acl" <<ACL
user default off resetpass ~* &* +@all
user probe on nopass resetkeys resetchannels -@all +ping
user msf on #$hash resetkeys ~{msf}:* resetchannels +@all -@admin -@dangerous +info
ACL
