# One controller for each thing that differs: LBAs of 4 KiB, two namespaces, one queue, a bad sector, two controllers on
# one namespace. Shadow doorbells are in all of them: the model has them, and the driver uses them wherever they are.
#: timeout 900
#: drive d1 256M
#: device nvme,id=nvme1,serial=LBA4K,drive=d1,logical_block_size=4096,physical_block_size=4096,addr=11
#: drive d2a 128M
#: drive d2b 128M
#: device nvme,id=nvme2,serial=TWO,addr=12
#: device nvme-ns,drive=d2a,bus=nvme2,nsid=1
#: device nvme-ns,drive=d2b,bus=nvme2,nsid=2,logical_block_size=4096,physical_block_size=4096
#: drive d3 128M
#: device nvme,id=nvme3,serial=ONEQ,drive=d3,max_ioqpairs=1,addr=13
#: baddrive d4 192M 245760
#: device nvme,id=nvme4,serial=BAD,drive=d4,addr=14
#: drive d5 128M
#: device nvme-subsys,id=subsys0,nqn=shared
#: device nvme,id=nvme5,serial=PATH,subsys=subsys0,addr=15
#: device nvme,id=nvme6,serial=PATH,subsys=subsys0,addr=16
#: device nvme-ns,drive=d5,bus=nvme5,nsid=1,shared=on
at() { echo "nvme:0000:00:$1.0"; }
$VELLUM nvme setup 0000:00:11.0 0000:00:12.0 0000:00:13.0 0000:00:14.0 0000:00:15.0 0000:00:16.0 --yes > /dev/null
$VELLUM nvme list

# An emulated machine on a loaded host misses any time limit now and then: a mount that gives up is tried again.
mount_on() {
    for try in 1 2 3 4 5; do
        $VELLUM mount "file:$1" /mnt $2 &
        mount=$!
        while kill -0 $mount 2>/dev/null; do
            if mountpoint -q /mnt; then return 0; fi
            sleep 0.2
        done
    done
    return 1
}
unmount() { umount /mnt; wait $mount; }
dd if=/dev/urandom of=/tmp/blob bs=1M count=8 2>/dev/null

echo "== LBAs of 4 KiB"
dev=$(at 11)
$VELLUM nvme identify $dev | tee /tmp/identify
grep 'LBAs of 4096 bytes' /tmp/identify
grep 'doorbell buffers' /tmp/identify
$VELLUM mkfs $dev
mount_on $dev
dd if=/tmp/blob of=/mnt/blob bs=1M conv=fsync 2>/dev/null
kill -9 $mount
wait $mount || true
umount -l /mnt
mount_on $dev
cmp /tmp/blob /mnt/blob
unmount
$VELLUM check $dev

echo "== two namespaces"
dev=$(at 12)
$VELLUM check $dev 2>&1 | grep 'several namespaces'
$VELLUM nvme perf $dev/1 -w randwrite -t 1 --destroy-all-data > /dev/null
$VELLUM mkfs $dev/2
$VELLUM check $dev/2
if $VELLUM check $dev/1; then exit 1; fi
if $VELLUM check $dev/3; then exit 1; fi

echo "== one queue"
dev=$(at 13)
$VELLUM mkfs $dev
# Two reactors want two queues: refused, and said why. One reactor is content, also with a queue for recovery before.
if $VELLUM mount file:$dev /mnt --cores 0,1 2> /tmp/refused; then exit 1; fi
cat /tmp/refused
grep -e '--cores' /tmp/refused
mount_on $dev "--cores 0"
dd if=/tmp/blob of=/mnt/blob bs=1M conv=fsync 2>/dev/null
unmount
$VELLUM check $dev

echo "== a bad sector"
dev=$(at 14)
$VELLUM mkfs $dev
mount_on $dev
n=0
while [ $n -lt 48 ] && dd if=/dev/urandom of=/mnt/f$n bs=1M count=4 conv=fsync 2>/dev/null; do n=$((n + 1)); done
rm -f /mnt/f$n
echo "$n files"
unmount
mount_on $dev
bad=0
good=0
for f in /mnt/f*; do
    if dd if=$f of=/dev/null bs=1M 2> /tmp/err; then good=$((good + 1)); else bad=$((bad + 1)); tail -1 /tmp/err; fi
done
echo "$good files read, $bad have the bad sector"
[ $bad = 1 ]
[ $good -gt 10 ]
# The filesystem lives on: what is given back is used again.
rm /mnt/f0 /mnt/f1 /mnt/f2 /mnt/f3 /mnt/f4 /mnt/f5
sync -f /mnt
cp /tmp/blob /mnt/after
cmp /tmp/blob /mnt/after
unmount
$VELLUM nvme log $dev

echo "== two controllers on one namespace"
$VELLUM nvme identify $(at 15) | grep 'may be shared'
$VELLUM mkfs $(at 15)/1
mount_on $(at 15)/1
dd if=/tmp/blob of=/mnt/blob bs=1M conv=fsync 2>/dev/null
# The node with the first controller dies; another takes over through the second.
kill -9 $mount
wait $mount || true
umount -l /mnt
mount_on $(at 16)/1
cmp /tmp/blob /mnt/blob
unmount
$VELLUM check $(at 15)/1
echo PASS
