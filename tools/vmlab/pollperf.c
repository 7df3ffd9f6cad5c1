// pollperf GROUP ADDRESS DEPTH SECONDS [dbbuf]: random 4 KiB reads of namespace 1 through one queue pair over VFIO; prints
// the reads per second. The least that a polling driver can do: no errors handled, no latencies, no second queue.
// `dbbuf`: with shadow doorbells. What the driver of the `nvme` crate is compared with in jobs/perf.sh.
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MAX_DEPTH = 255, ENTRIES = 256 };
enum { ADMIN_SQ, ADMIN_CQ, BUFFER, SHADOW, EVENTS, SQ, CQ = SQ + ENTRIES * 64 / PAGE, DATA = CQ + 1 };
enum { PAGES = DATA + MAX_DEPTH };
static const uint64_t IOVA = 1ull << 32;

struct command { uint8_t opcode, flags; uint16_t cid; uint32_t nsid, reserved[4]; uint64_t prp1, prp2; uint32_t dw[6]; };
struct completion { uint32_t result, reserved; uint16_t sq_head, sq_id, cid, status; };
struct queue { volatile struct command *sq; volatile struct completion *cq; unsigned id, entries, tail, head, phase; };

static uint8_t *memory;
static volatile uint8_t *bar;
static volatile uint32_t *shadow, *events; // null: plain doorbells
static unsigned stride;

#define CHECK(what) do { if ((long)(what) < 0) { perror(#what); exit(1); } } while (0)
static uint64_t iova(unsigned page) { return IOVA + (uint64_t)page * PAGE; }
static volatile uint32_t *reg(unsigned at) { return (volatile uint32_t *)(bar + at); }

static void open_function(const char *group, const char *address) {
    char path[64];
    int container = open("/dev/vfio/vfio", O_RDWR), group_fd, function;
    snprintf(path, sizeof path, "/dev/vfio/%s", group);
    CHECK(container);
    CHECK(group_fd = open(path, O_RDWR));
    CHECK(ioctl(group_fd, VFIO_GROUP_SET_CONTAINER, &container));
    CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
    CHECK(function = ioctl(group_fd, VFIO_GROUP_GET_DEVICE_FD, address));
    struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
    struct vfio_region_info bar0 = {.argsz = sizeof bar0, .index = VFIO_PCI_BAR0_REGION_INDEX};
    CHECK(ioctl(function, VFIO_DEVICE_GET_REGION_INFO, &config));
    CHECK(ioctl(function, VFIO_DEVICE_GET_REGION_INFO, &bar0));
    uint16_t enable;
    CHECK(pread(function, &enable, 2, config.offset + 4));
    enable |= 6; // memory space, bus master
    CHECK(pwrite(function, &enable, 2, config.offset + 4));
    bar = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, function, bar0.offset);
    memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bar == MAP_FAILED || memory == MAP_FAILED) exit(1);
    struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)memory, .iova = IOVA, .size = PAGES * PAGE};
    CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
}

static void ring(unsigned index, unsigned old, unsigned value) {
    if (shadow && index > 1) {
        shadow[index] = value;
        __sync_synchronize();
        if ((uint16_t)(value - events[index] - 1) >= (uint16_t)(value - old)) return;
    }
    *(volatile uint32_t *)(bar + 0x1000 + index * stride) = value;
}

static void put(struct queue *q, struct command c) {
    memcpy((void *)&q->sq[q->tail], &c, sizeof c);
    q->tail = (q->tail + 1) % q->entries;
}

static int take(struct queue *q, struct completion *done) {
    if ((q->cq[q->head].status & 1) != q->phase) return 0;
    *done = q->cq[q->head];
    q->head = (q->head + 1) % q->entries;
    if (q->head == 0) q->phase ^= 1;
    return 1;
}

static void admin(struct queue *q, struct command c) {
    struct completion done;
    unsigned tail = q->tail, head = q->head;
    put(q, c);
    ring(0, tail, q->tail);
    while (!take(q, &done)) {}
    ring(1, head, q->head);
    if (done.status >> 1) { fprintf(stderr, "admin command %#x: status %#x\n", c.opcode, done.status >> 1); exit(1); }
}

static struct queue queue(unsigned id, unsigned sq, unsigned cq, unsigned entries) {
    return (struct queue){(void *)(memory + sq * PAGE), (void *)(memory + cq * PAGE), id, entries, 0, 0, 1};
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    unsigned depth = atoi(arguments[3]);
    double seconds = atof(arguments[4]);
    if (depth < 1 || depth > MAX_DEPTH) return 2;
    open_function(arguments[1], arguments[2]);
    *reg(0x14) = 0; // CC
    while (*reg(0x1c) & 1) {}
    stride = 4 << (*reg(4) & 15);
    *reg(0x24) = 15 << 16 | 15; // AQA
    *reg(0x28) = (uint32_t)iova(ADMIN_SQ), *reg(0x2c) = iova(ADMIN_SQ) >> 32;
    *reg(0x30) = (uint32_t)iova(ADMIN_CQ), *reg(0x34) = iova(ADMIN_CQ) >> 32;
    *reg(0x14) = 4 << 20 | 6 << 16 | 1;
    while (!(*reg(0x1c) & 1)) {}

    struct queue a = queue(0, ADMIN_SQ, ADMIN_CQ, 16), q = queue(1, SQ, CQ, ENTRIES);
    admin(&a, (struct command){.opcode = 6, .nsid = 1, .prp1 = iova(BUFFER)});
    uint64_t lbas;
    memcpy(&lbas, memory + BUFFER * PAGE, 8);
    unsigned shift = memory[BUFFER * PAGE + 128 + 4 * (memory[BUFFER * PAGE + 26] & 15) + 2];
    admin(&a, (struct command){.opcode = 9, .dw = {7}});
    if (count > 5) {
        admin(&a, (struct command){.opcode = 0x7c, .prp1 = iova(SHADOW), .prp2 = iova(EVENTS)});
        shadow = (void *)(memory + SHADOW * PAGE), events = (void *)(memory + EVENTS * PAGE);
    }
    admin(&a, (struct command){.opcode = 5, .prp1 = iova(CQ), .dw = {(ENTRIES - 1) << 16 | 1, 1}});
    admin(&a, (struct command){.opcode = 1, .prp1 = iova(SQ), .dw = {(ENTRIES - 1) << 16 | 1, 1 << 16 | 1}});

    uint64_t places = (lbas << shift) / PAGE, seed = 88172645463325252ull, done_count = 0;
    unsigned in_flight = 0, free_ids[MAX_DEPTH], free_count = depth;
    for (unsigned i = 0; i < depth; i++) free_ids[i] = i;
    double start = now(), end = start + seconds, t = start;
    while (t < end || in_flight) {
        unsigned tail = q.tail, head = q.head;
        while (free_count && t < end) {
            unsigned id = free_ids[--free_count];
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            uint64_t lba = seed % places * PAGE >> shift;
            put(&q, (struct command){.opcode = 2, .cid = id, .nsid = 1, .prp1 = iova(DATA + id),
                .dw = {(uint32_t)lba, lba >> 32, (PAGE >> shift) - 1}});
            in_flight++;
        }
        if (q.tail != tail) ring(2, tail, q.tail);
        struct completion done;
        while (take(&q, &done)) {
            if (done.status >> 1) { fprintf(stderr, "read: status %#x\n", done.status >> 1); return 1; }
            free_ids[free_count++] = done.cid;
            in_flight--, done_count++;
        }
        if (q.head != head) ring(3, head, q.head);
        t = now();
    }
    printf("%.0f\n", done_count / (t - start));
    return 0;
}
