# The controller is taken from nobody, identified, measured; a filesystem lives on it, is killed in mid-IO, recovers.
#: drive d0 512M
#: device nvme,id=nvme0,serial=LAB0,drive=d0,max_ioqpairs=8,addr=10
#: timeout 900
dev=nvme:0000:00:10.0
# An emulated machine on a loaded host misses any time limit now and then: a mount that gives up is tried again.
mount_it() {
    for try in 1 2 3 4 5; do
        $VELLUM mount file:$dev /mnt &
        mount=$!
        while kill -0 $mount 2>/dev/null; do
            if mountpoint -q /mnt; then return 0; fi
            sleep 0.2
        done
    done
    return 1
}
$VELLUM nvme list
$VELLUM nvme setup 0000:00:10.0 | grep 'nothing was done'
$VELLUM nvme setup 0000:00:10.0 --yes
$VELLUM nvme identify $dev | tee /tmp/identify
grep 'serial LAB0' /tmp/identify
$VELLUM nvme smart $dev
$VELLUM nvme log $dev
$VELLUM nvme perf $dev -q 32 -w randread -t 2
$VELLUM nvme perf $dev -q 8 -o 128K -w randrw -M 50 -t 2 --destroy-all-data
$VELLUM nvme write-zeroes $dev/1 --at 4096 --len 1M --destroy-all-data
$VELLUM mkfs $dev --force
mount_it
mkdir /mnt/tree
cp -r /usr/share/zoneinfo/Europe /mnt/tree/
dd if=/dev/urandom of=/tmp/blob bs=1M count=16 2>/dev/null
cp /tmp/blob /mnt/blob
(cd /usr/share/zoneinfo && find Europe -type f | sort | xargs md5sum) > /tmp/sums
(cd /mnt/tree && md5sum -c /tmp/sums) > /dev/null
# An fsync of a file is durable; what follows it may be lost.
dd if=/tmp/blob of=/mnt/synced bs=1M conv=fsync 2>/dev/null
cp -r /usr/share/zoneinfo/America /mnt/tree/ &
sleep 1
kill -9 $mount
wait || true
umount -l /mnt 2>/dev/null || true
$VELLUM check $dev
mount_it
cmp /tmp/blob /mnt/synced
(cd /mnt/tree && md5sum -c /tmp/sums) > /dev/null
umount /mnt
wait $mount
$VELLUM check $dev
$VELLUM nvme reset 0000:00:10.0 --yes
echo PASS
