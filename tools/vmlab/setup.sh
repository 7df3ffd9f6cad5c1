#!/usr/bin/env bash
# setup.sh DIR: downloads a Debian kernel, busybox and kmod into DIR and prepares them; does nothing when that is done.
# Wants apt lists (apt-get update), gcc, python3, and qemu-system-x86 for run.sh.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
mkdir -p "${1:?usage: setup.sh DIR}/debs"
dir=$(readlink -f "$1")
[ -e "$dir/ready" ] && [ "$dir/ready" -nt "$here/init" ] && exit 0
cd "$dir/debs"
package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/{print $2; exit}')
[ -n "$package" ] || { echo "no package linux-image-amd64: run apt-get update" >&2; exit 1; }
version=${package#linux-image-}
apt-get -qq download "$package" busybox-static kmod
cd ..
mkdir -p kernel busybox kmod
dpkg -x debs/"${package}"_*.deb kernel
dpkg -x debs/busybox-static_*.deb busybox
dpkg -x debs/kmod_*.deb kmod
ln -sf kmod kmod/bin/depmod
ln -sf kmod kmod/bin/modprobe
kmod/bin/depmod -b kernel "$version"

# bzImage to ELF: QEMU then boots through the PVH entry and the guest has nothing to decompress (14 s become 6 s).
python3 - "kernel/boot/vmlinuz-$version" vmlinux <<'PYTHON'
import lzma, struct, sys
data = open(sys.argv[1], "rb").read()
setup_end = (data[0x1f1] + 1) * 512
offset, length = struct.unpack("<II", data[0x248:0x250])
payload = data[setup_end + offset : setup_end + offset + length]
assert payload[:6] == b"\xfd7zXZ\0", "the payload is not xz"
image = lzma.LZMADecompressor().decompress(payload)
assert image[:4] == b"\x7fELF"
open(sys.argv[2], "wb").write(image)
PYTHON

gcc -O2 -static -o insmods "$here/insmods.c"
# The initial RAM disk: busybox, init, the modules, and for each module that init asks for the files to load, in order.
root=$(mktemp -d "$dir/root.XXXXXX")
mkdir -p "$root"/{bin,bb,m}
cp busybox/bin/busybox insmods "$root/bin/"
cp "$here/init" "$root/init"
chmod +x "$root/init"
for module in nvme vfio-pci vfio_iommu_type1 fuse 9p 9pnet_virtio virtio_pci; do
    kmod/bin/modprobe -d kernel -S "$version" --show-depends "$module" | awk '$1 == "insmod" {print $2}' > files
    sort -u files | xargs -r cp -t "$root/m"
    xargs -r -n1 basename < files | tr '\n' ' ' > "$root/m/$module.load"
    echo >> "$root/m/$module.load"
done
(cd "$root" && find . | "$dir/busybox/bin/busybox" cpio -o -H newc 2>/dev/null) > initrd
rm -rf "$root" files
touch ready
