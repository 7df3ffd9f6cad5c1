# The same controller, the same 4 KiB random reads at depth 32, three drivers: the guest kernel's (io_uring, direct IO), the
# `nvme` crate's over VFIO, and the least that polls (pollperf.c). In rounds, each driver for a second: the machine is emulated,
# and shared, so that only what is measured close together can be compared. Prints the median of the rounds' ratios; asserts
# none.
#: cc pollperf
#: drive d0 512M
#: device nvme,id=nvme0,serial=LAB0,drive=d0,max_ioqpairs=8,addr=10
#: timeout 1200
address=0000:00:10.0
depth=32
rounds=11
field() { sed 's/.*"total":{\([^}]*\)}.*/\1/; s/.*"iops":\([0-9]*\).*/\1/'; }
ours() { $VELLUM nvme perf "$1" -q $depth -w randread -t 1 -c 1 --json | field; }
disk() { ls /dev/nvme*n1 2> /dev/null | head -1; }
loop() { taskset 2 /job/pollperf "$group" $address $depth 1 "$@"; }

load nvme
while [ -z "$(disk)" ]; do sleep 0.1; done
# What was never written is read from nowhere.
dd if=/dev/zero of="$(disk)" bs=1M count=512 conv=fsync 2> /dev/null
group=$(basename "$(readlink /sys/bus/pci/devices/$address/iommu_group)")
echo "reads/s: kernel driver, vellum, minimal loop with doorbell registers, with shadow doorbells"
: > /tmp/rounds
for round in $(seq $rounds); do
    while [ -z "$(disk)" ]; do sleep 0.1; done
    kernel=$(ours uring:"$(disk)")
    $VELLUM nvme setup $address --yes > /dev/null
    echo "$kernel $(ours nvme:$address) $(loop) $(loop dbbuf)" | tee -a /tmp/rounds
    $VELLUM nvme reset $address --yes > /dev/null
done
median() { awk "{ printf \"%.2f\\n\", \$2 / \$$1 }" /tmp/rounds | sort -n | sed -n "$((rounds / 2 + 1))p"; }
echo "vellum against the kernel's driver:            $(median 1) times (median)"
echo "vellum against the loop with registers:        $(median 3) times"
echo "vellum against the loop with shadow doorbells: $(median 4) times"
echo PASS
