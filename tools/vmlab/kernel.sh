#!/usr/bin/env bash
# kernel.sh LAB VARIANT: builds a small kernel with iommufd for the guest, since Debian's have none, and makes of it the
# lab LAB/VARIANT for run.sh. By hand: 150 MB to download and some minutes to compile; a second variant takes one.
#   cdev    controllers as /dev/vfio/devices/vfioN, no groups
#   both    the same, and groups with a type 1 container
#   compat  groups whose container is iommufd's imitation of type 1
# Wants what setup.sh wants, and flex, bison, bc, libelf-dev.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
variant=${2:?usage: kernel.sh LAB cdev|both|compat}
case $variant in
cdev) options="VFIO_DEVICE_CDEV=y VFIO_GROUP=n" ;;
both) options="VFIO_DEVICE_CDEV=y VFIO_GROUP=y VFIO_CONTAINER=y VFIO_IOMMU_TYPE1=y" ;;
compat) options="VFIO_DEVICE_CDEV=n VFIO_GROUP=y VFIO_CONTAINER=n IOMMUFD_VFIO_CONTAINER=y" ;;
*) echo "no variant $variant: cdev, both or compat" >&2 && exit 1 ;;
esac
"$here/setup.sh" "$1"
lab=$(readlink -f "$1")
mkdir -p "$lab/$variant" "$lab/linux"
[ -e "$lab/$variant/ready" ] && [ "$lab/$variant/ready" -nt "$0" ] && [ "$lab/$variant/ready" -nt "$lab/ready" ] && exit 0

cd "$lab/linux"
if [ ! -e source ]; then
    package=linux-source-6.12
    (cd ../debs && apt-get -qq download $package && dpkg -x "$package"_*.deb "$lab/linux")
    tar -xf usr/src/$package.tar.xz
    rm -r usr
    mv $package source
fi
# The least that boots here (allnoconfig), and what init, the jobs and vellum use. Nothing is a module.
make -s -C source O=../build allnoconfig
{
    for option in \
        64BIT SMP PVH HYPERVISOR_GUEST PARAVIRT X86_X2APIC ACPI PCI PCI_MSI PCI_MMCONFIG HIGH_RES_TIMERS \
        PRINTK TTY SERIAL_8250 SERIAL_8250_CONSOLE EARLY_PRINTK DEVMEM DEVPORT UNIX98_PTYS KALLSYMS BUG \
        BLK_DEV_INITRD BINFMT_ELF BINFMT_SCRIPT MULTIUSER PROC_FS PROC_SYSCTL SYSFS SYSFS_SYSCALL DEVTMPFS TMPFS SHMEM \
        HUGETLBFS TRANSPARENT_HUGEPAGE MEMFD_CREATE ADVISE_SYSCALLS MEMBARRIER RSEQ \
        FUTEX EPOLL SIGNALFD TIMERFD EVENTFD AIO IO_URING POSIX_TIMERS FILE_LOCKING INOTIFY_USER FHANDLE \
        NET INET UNIX NETDEVICES NETWORK_FILESYSTEMS NET_9P NET_9P_VIRTIO 9P_FS FUSE_FS BLOCK \
        VIRTIO_MENU VIRTIO_PCI BLK_DEV_NVME \
        IOMMU_SUPPORT INTEL_IOMMU IRQ_REMAP IOMMUFD VFIO VFIO_PCI; do
        echo "CONFIG_$option=y"
    done
    for option in $options; do echo "CONFIG_$option"; done
} > wanted
source/scripts/kconfig/merge_config.sh -m -O build build/.config wanted > /dev/null
make -s -C source O=../build olddefconfig
# An option whose dependencies are missing is dropped without a word.
wrong=$(
    grep '=y$' wanted | sort -u | grep -vxFf build/.config || true
    sed -n 's/=n$/=y/p' wanted | grep -xFf build/.config || true
)
[ -z "$wrong" ] || { printf 'not what the kernel takes:\n%s\n' "$wrong" >&2 && exit 1; }
nice -n 5 make -s -C source O=../build -j"$(nproc)" vmlinux
cp build/vmlinux "$lab/$variant/vmlinux"

# The kernel unpacks initial RAM disks one after the other: this one says that no module is to be loaded.
root=$(mktemp -d "$lab/root.XXXXXX")
mkdir "$root/m"
for list in $("$lab/busybox/bin/busybox" cpio -t < "$lab/initrd" 2> /dev/null | grep 'm/.*\.load$'); do echo > "$root/$list"; done
(cd "$root" && find . | "$lab/busybox/bin/busybox" cpio -o -H newc 2>/dev/null) > overlay
cat "$lab/initrd" overlay > "$lab/$variant/initrd"
rm -rf "$root" overlay
touch "$lab/$variant/ready"
