#!/usr/bin/env bash
# enter.sh ROOT SCRIPT: run SCRIPT with ROOT as the root of a mount namespace in which nothing else is left.
set -euo pipefail
root=$1 script=$2
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 600 dev/fuse c 10 229
for directory in etc opt/sealpoint root run tmp usr var; do
    mkdir -p "$directory"
done
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
pivot_root . old
# Descriptors of the old root must not reach what is dumped.
exec /bin/sh -c 'umount -l /old; cd /root; '"$script" </dev/null
