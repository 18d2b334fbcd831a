# What a host of the tests knows: a container on it, and a daemon.  Read by its first process.

# In namespaces as a privileged pod has them that sees the host's root directory, and not its processes otherwise.
node() {
    command=$1
    shift
    unshare -m -p -f sh -c 'mount -o rbind / /run/container/host
        mount -t proc proc /run/container/proc && mount -o bind /dev /run/container/dev && exec chroot /run/container "$@"' \
        sh /opt/sealpoint/bin/sealpoint node "$command" --host /host "$@"
}

# another_version: the image of an update; only a text in it differs.
another_version() {
    echo "another $1" >/tmp/license
    mount --bind /tmp/license /run/container/opt/sealpoint/LICENSE
}

# daemon PATH: a process that is named as containerd is; a file stands for what says its service.
daemon() {
    env -i PATH="$1" /usr/bin/containerd /tmp/daemon &
    daemon=$!
    until [ "$(cat /proc/$daemon/comm)" = containerd ]; do sleep 0.1; done
    echo 0::/../../system.slice/containerd.service >/tmp/cgroup
    mount --bind /tmp/cgroup /proc/$daemon/cgroup
}

python=/run/container/opt/sealpoint/bin/python3
keys() {
    mkdir -p /etc/sealpoint
    for kind in "" --signer; do
        /opt/sealpoint/current/bin/sealpoint keygen /etc/sealpoint/k $kind >/dev/null || exit 9
    done
    cat >/etc/sealpoint/config.toml <<END
recipients = ["k/recipient.pub"]
signer = "k/signer.key"
identities = ["k/identity.key"]
trust = ["k/signer.pub"]
END
}
