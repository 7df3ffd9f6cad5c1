# The same controller, the same 4 KiB random reads at depth 32, three drivers: the guest kernel's (io_uring, direct IO), the
# `nvme` crate's over VFIO, and the least that polls (pollperf.c). Prints the ratios; asserts none (the machine is emulated).
#: cc pollperf
#: drive d0 512M
#: device nvme,id=nvme0,serial=LAB0,drive=d0,max_ioqpairs=8,addr=10
#: timeout 1200
address=0000:00:10.0
depth=32
seconds=1
field() { sed 's/.*"total":{\([^}]*\)}.*/\1/; s/.*"iops":\([0-9]*\).*/\1/'; }
ours() { $VELLUM nvme perf "$1" -q $depth -w randread -t $seconds -c 1 --json | field; }

load nvme
while [ ! -b /dev/nvme0n1 ]; do sleep 0.1; done
# What was never written is read from nowhere.
dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=512 conv=fsync 2> /dev/null
best() { sort -n | tail -1; }
for round in 1 2 3 4 5 6; do ours uring:/dev/nvme0n1; done > /tmp/kernel
kernel=$(best < /tmp/kernel)
echo "kernel driver, io_uring           $kernel reads/s (best of $(tr '\n' ' ' < /tmp/kernel))"
$VELLUM nvme setup $address --yes > /dev/null
group=$(basename "$(readlink /sys/bus/pci/devices/$address/iommu_group)")
: > /tmp/ours; : > /tmp/plain; : > /tmp/shadow
for round in 1 2 3 4 5 6 7 8 9 10 11 12; do
    ours nvme:$address >> /tmp/ours
    taskset 2 /job/pollperf "$group" $address $depth $seconds >> /tmp/plain
    taskset 2 /job/pollperf "$group" $address $depth $seconds dbbuf >> /tmp/shadow
done
vellum=$(best < /tmp/ours) plain=$(best < /tmp/plain) shadow=$(best < /tmp/shadow)
echo "vellum over VFIO                  $vellum reads/s (best of $(tr '\n' ' ' < /tmp/ours))"
echo "minimal loop, doorbell registers  $plain reads/s (best of $(tr '\n' ' ' < /tmp/plain))"
echo "minimal loop, shadow doorbells    $shadow reads/s (best of $(tr '\n' ' ' < /tmp/shadow))"
ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }
echo "vellum against the kernel's driver: $(ratio "$vellum" "$kernel") times"
echo "vellum against the minimal loop:    $(ratio "$vellum" "$plain") times (registers), $(ratio "$vellum" "$shadow") times (shadow doorbells)"
echo PASS
