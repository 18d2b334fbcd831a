#!/usr/bin/env bash
# host.sh FILES IMAGE SCRIPT: run SCRIPT as the first process of a host whose root directory is in memory and has FILES.
# IMAGE is a container's root directory, at /run/container on the host; `node WORDS` runs sealpoint node in it.
set -euo pipefail
files=$1 image=$2 script=$3
mount --make-rprivate /
root=$(mktemp -d)
mount -t tmpfs -o mode=755 tmpfs "$root"
cp -a "$files/." "$root"
cd "$root"
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 600 dev/fuse c 10 229
mkdir -p run/systemd/system run/container etc/systemd/system
mount --bind "$image" run/container
mount -t tmpfs tmpfs run/container/tmp
pivot_root . old
# Descriptors of the old root must not reach what is dumped.
exec /bin/sh -c 'umount -l /old; cd /root; . /root/node.sh; '"$script" </dev/null
