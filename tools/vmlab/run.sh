#!/usr/bin/env bash
# run.sh LAB VELLUM JOB [OUT]: boots the guest, runs JOB with the binary VELLUM as /job/vellum, exits with its status.
# 124: took too long; 250: the guest died, or DMA faulted. What the guest left is in OUT (default: a new directory in LAB).
# Lines of the job that begin with "#: ":
#   #: drive NAME SIZE             a raw image of that size, as -drive id=NAME
#   #: baddrive NAME SIZE SECTOR   the same, with a sector of 512 bytes that cannot be read
#   #: device ARGS                 a QEMU device
#   #: cc NAME                     NAME.c beside this script, compiled as /job/NAME
#   #: timeout SECONDS
#   #: memory MIB
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
lab=$(readlink -f "${1:?usage: run.sh LAB VELLUM JOB [OUT]}")
vellum=$2
job=$3
out=${4:-$(mktemp -d "$lab/out.XXXXXX")}
mkdir -p "$out"
out=$(readlink -f "$out")
rm -f "$out"/{rc,stdout,dmesg,console.log} "$out"/*.img
cp "$job" "$out/job.sh"
cp "$vellum" "$out/vellum"
timeout=300
memory=1536
extra=()
while read -r kind rest; do
    case $kind in
    drive)
        read -r name size <<< "$rest"
        truncate -s "$size" "$out/$name.img"
        extra+=(-drive "if=none,id=$name,file=$out/$name.img,format=raw,cache=writeback,discard=unmap")
        ;;
    baddrive) # NAME SIZE SECTOR: reads of that sector fail, for ever
        read -r name size sector <<< "$rest"
        truncate -s "$size" "$out/$name.img"
        printf '[inject-error]\nevent = "none"\niotype = "read"\nerrno = "5"\nsector = "%s"\n' "$sector" > "$out/$name.rules"
        extra+=(-drive "if=none,id=$name,file=blkdebug:$out/$name.rules:$out/$name.img,format=raw,cache=writeback")
        ;;
    device) extra+=(-device "$rest") ;;
    cc) cc -O2 -Wall -static -o "$out/$rest" "$here/$rest.c" || exit 250 ;;
    timeout) timeout=$rest ;;
    memory) memory=$rest ;;
    esac
done < <(sed -n 's/^#: //p' "$job")

timeout --foreground -s KILL "$timeout" qemu-system-x86_64 -nodefaults -no-reboot -display none -monitor none \
    -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" \
    -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on \
    -kernel "$lab/vmlinux" -initrd "$lab/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check intel_iommu=on,sm_off iommu=nopt random.trust_cpu=on hugepages=64 rdinit=/init" \
    -serial "file:$out/console.log" -device isa-debug-exit,iobase=0x501,iosize=2 \
    -virtfs local,path=/usr,mount_tag=usr,security_model=none,readonly=on,multidevs=remap \
    -virtfs "local,path=$out,mount_tag=job,security_model=none,multidevs=remap" \
    "${extra[@]}" < /dev/null 2> "$out/qemu.err"
qemu=$?
rm -f "$out/vellum"
[ -e "$out/stdout" ] && cat "$out/stdout"
if [ $qemu = 137 ]; then
    echo "[lab] the guest took longer than $timeout s" >&2
    exit 124
fi
if [ $((qemu & 1)) = 0 ] || [ ! -e "$out/rc" ]; then
    echo "[lab] the guest died without a verdict (QEMU's status $qemu)" >&2
    head -3 "$out/qemu.err" >&2
    tail -3 "$out/console.log" >&2
    exit 250
fi
# An access that the IOMMU refused completes as if nothing had happened in this model.
if grep -E 'DMAR.*fault' "$out/dmesg" >&2 || grep -E 'vtd_' "$out/qemu.err" >&2; then
    echo "[lab] DMA faults" >&2
    exit 250
fi
exit $((qemu >> 1))
