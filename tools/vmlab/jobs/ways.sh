# One controller, opened by whichever way the kernel has. `setup` takes it from nobody, says the way, and gives it to a user;
# a second process is refused, and so is `reset` meanwhile. Memory of ordinary pages serves as well as huge ones. A process
# that has the controller gives it back when it is removed.
#: drive d0 160M
#: device nvme,id=nvme0,serial=WAYS,drive=d0,addr=10
#: timeout 900
address=0000:00:10.0
dev=nvme:$address
refused() { # TEXT COMMAND...: the command fails, and says TEXT
    text=$1
    shift
    if "$@" > /tmp/refused 2>&1; then
        echo "not refused: $*"
        exit 1
    fi
    cat /tmp/refused
    grep -q -e "$text" /tmp/refused
}
chmod 755 / /job # made for root alone
user="/usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups"
has_open() { ls -l /proc/$1/fd 2> /dev/null | grep -q "$2"; }
wait_open() { for try in $(seq 300); do if has_open "$@"; then return 0; fi; sleep 0.1; done; return 1; }

echo "== in use by the kernel"
load nvme
disk=
while [ -z "$disk" ]; do
    sleep 0.1
    disk=$(ls /dev/nvme*n1 2> /dev/null | head -1)
done
$VELLUM nvme list
if [ -e /proc/swaps ]; then # kernel.sh's are without
    mkswap "$disk" > /dev/null
    swapon "$disk"
    refused 'used for swap' $VELLUM nvme setup $address --yes
    swapoff "$disk"
fi
$VELLUM mkfs "$disk" --force > /dev/null
$VELLUM serve "$disk" --listen unix:/tmp/served --cores 0 > /dev/null &
served=$!
wait_open $served "$disk"
sleep 1
refused 'open for itself' $VELLUM nvme setup $address --yes
kill -9 $served
wait $served || true

echo "== given to a user"
$VELLUM nvme setup $address --owner 1000 | tee /tmp/steps
grep -q 'nothing was done' /tmp/steps
grep -q 'chown 1000' /tmp/steps
[ -e "$disk" ]
$VELLUM nvme setup $address --owner 1000 --yes
way=group
node=/dev/vfio/$(basename "$(readlink /sys/bus/pci/devices/$address/iommu_group)")
if [ -e /dev/iommu ] && [ -d /sys/bus/pci/devices/$address/vfio-dev ]; then
    way=iommufd
    node=/dev/vfio/devices/$(ls /sys/bus/pci/devices/$address/vfio-dev)
fi
echo "the kernel has: $way, $node"
$VELLUM nvme list | tee /tmp/list
grep -q "by $way ($node," /tmp/list
[ "$(stat -c %u "$node")" = 1000 ]
$user $VELLUM nvme identify $dev | tee /tmp/identify
grep -q "VFIO, by $way" /tmp/identify
refused '--owner' /usr/bin/setpriv --reuid 1001 --regid 1001 --clear-groups $VELLUM nvme identify $dev
# A user who may lock less memory than the driver needs.
(
    ulimit -l 1024
    refused 'OPERATING.md' $user $VELLUM nvme identify $dev
)

echo "== in use by a process"
$user $VELLUM nvme perf $dev -q 4 -t 15 > /tmp/perf &
perf=$!
wait_open $perf vfio
sleep 2
refused 'in use by another process' $VELLUM nvme identify $dev
refused 'in use by a process' $VELLUM nvme reset $address --yes
wait $perf
cat /tmp/perf

echo "== ordinary pages"
dd if=/dev/urandom of=/tmp/blob bs=1M count=8 2> /dev/null
echo 0 > /proc/sys/vm/nr_hugepages
for pages in 0 64; do
    echo $pages > /proc/sys/vm/nr_hugepages
    $VELLUM mkfs $dev --force > /dev/null
    for round in write read; do
        $VELLUM mount file:$dev /mnt --cores 0 &
        mount=$!
        for try in $(seq 600); do if mountpoint -q /mnt; then break; fi; sleep 0.2; done
        if [ $round = write ]; then cp /tmp/blob /mnt/blob; else cmp /tmp/blob /mnt/blob; fi
        umount /mnt
        wait $mount
    done
    $VELLUM check $dev > /dev/null
    echo "$pages huge pages: verified"
done
$VELLUM nvme reset $address --yes
while [ ! -e "$disk" ]; do sleep 0.1; done

echo "== removed under a process"
$VELLUM nvme setup $address --yes > /dev/null
$VELLUM nvme perf $dev -q 4 -t 120 > /tmp/perf 2>&1 &
perf=$!
wait_open $perf vfio
sleep 2
# The kernel asks for the function and waits until it is given back.
echo 1 > /sys/bus/pci/devices/$address/remove
if wait $perf; then exit 1; fi
cat /tmp/perf
grep -q 'the kernel takes it back' /tmp/perf
[ ! -e /sys/bus/pci/devices/$address ]
echo PASS
