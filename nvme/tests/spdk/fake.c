// The functions of SPDK that Vellum uses, over memory: for tests of the calls into C. Not a model of SPDK. Commands are
// kept until the queue pair is polled; the transport id says what is to go wrong.
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LBA = 512, LBAS = 8192, DEPTH = 8, ENOMEM_ = 12, ENXIO_ = 6 };
typedef void (*callback)(void *, const void *);
struct command { int kind; void *data; uint64_t lba; uint32_t lbas; callback done; void *context; };
struct controller { bool bad_read, bad_flush, lost; int pairs; };
struct pair { struct controller *owner; struct command commands[DEPTH]; unsigned count; };
struct range { uint32_t attributes, lbas; uint64_t lba; };

static uint8_t medium[LBAS * LBA];
static struct controller *the_controller;
int fake_allocated, fake_attached, fake_started, fake_fua;

int rte_eal_init(int count, char **arguments) { return count > 1 && arguments[count] == NULL && fake_started++ == 0 ? 0 : -1; }
int spdk_env_dpdk_post_init(bool legacy) { return legacy ? -1 : 0; }

void *spdk_zmalloc(size_t size, size_t align, uint64_t *unused, int node, uint32_t flags) {
    void *at = flags == 1 && node == -1 && !unused ? aligned_alloc(align, size) : NULL;
    if (at) fake_allocated++, memset(at, 0, size);
    return at;
}
void spdk_free(void *at) { if (at) fake_allocated--; free(at); }

int spdk_nvme_transport_id_parse(void *id, const char *text) {
    if (!strstr(text, "trtype:") || strstr(text, "ns:")) return -22;
    strncpy(id, text, 500);
    return 0;
}
void *spdk_nvme_connect(const void *id, const void *options, size_t size) {
    if (strstr(id, "traddr:absent") || options || size) return NULL;
    struct controller *c = calloc(1, sizeof *c);
    c->bad_read = strstr(id, "bad-read"), c->bad_flush = strstr(id, "bad-flush"), c->lost = strstr(id, "lost");
    fake_attached++;
    return the_controller = c;
}
int spdk_nvme_detach(void *c) {
    if (((struct controller *)c)->pairs) return -16;
    fake_attached--;
    free(c);
    return 0;
}
uint32_t spdk_nvme_ctrlr_get_first_active_ns(void *c) { return c ? 1 : 0; }
void *spdk_nvme_ctrlr_get_ns(void *c, uint32_t id) { return c && id == 1 ? medium : NULL; }
uint32_t spdk_nvme_ns_get_sector_size(void *ns) { return ns == medium ? LBA : 0; }
uint64_t spdk_nvme_ns_get_num_sectors(void *ns) { return ns == medium ? LBAS : 0; }
int spdk_nvme_ctrlr_process_admin_completions(void *c) { return ((struct controller *)c)->lost ? -ENXIO_ : 0; }

void *spdk_nvme_ctrlr_alloc_io_qpair(void *c, const void *options, size_t size) {
    struct controller *owner = c;
    if (owner->pairs == 2 || options || size) return NULL;
    struct pair *p = calloc(1, sizeof *p);
    owner->pairs++;
    p->owner = owner;
    return p;
}

static void answer(struct command *c, uint16_t status) {
    uint8_t entry[16] = {0};
    status <<= 1;
    memcpy(entry + 14, &status, 2);
    c->done(c->context, entry);
}
int spdk_nvme_ctrlr_free_io_qpair(void *at) {
    struct pair *p = at;
    for (unsigned i = 0; i < p->count; i++) answer(&p->commands[i], 0x008);
    p->owner->pairs--;
    free(p);
    return 0;
}

static int put(void *ns, void *at, struct command c) {
    struct pair *p = at;
    if (ns != medium) return -22;
    if (p->count == DEPTH) return -ENOMEM_;
    p->commands[p->count++] = c;
    return 0;
}
int spdk_nvme_ns_cmd_read(void *ns, void *p, void *data, uint64_t lba, uint32_t lbas, callback done, void *context, uint32_t flags) {
    return flags ? -22 : put(ns, p, (struct command){2, data, lba, lbas, done, context});
}
int spdk_nvme_ns_cmd_write(void *ns, void *p, void *data, uint64_t lba, uint32_t lbas, callback done, void *context, uint32_t flags) {
    int result = put(ns, p, (struct command){1, data, lba, lbas, done, context});
    fake_fua += !result && (flags & 1u << 30);
    return result;
}
int spdk_nvme_ns_cmd_flush(void *ns, void *p, callback done, void *context) {
    return put(ns, p, (struct command){0, NULL, 0, 0, done, context});
}
int spdk_nvme_ns_cmd_dataset_management(void *ns, void *p, uint32_t type, const void *ranges, uint16_t count, callback done, void *context) {
    const struct range *range = ranges;
    return type != 4 || count != 1 ? -22 : put(ns, p, (struct command){9, NULL, range->lba, range->lbas, done, context});
}

int32_t spdk_nvme_qpair_process_completions(void *at, uint32_t most) {
    struct pair *p = at;
    if (p->owner->lost) return -ENXIO_;
    unsigned count = p->count;
    (void)most;
    p->count = 0; // last first: nobody may count on an order
    for (unsigned i = count; i-- > 0;) {
        struct command *c = &p->commands[i];
        uint8_t *place = medium + c->lba * LBA;
        size_t len = (size_t)c->lbas * LBA;
        uint16_t status = 0;
        if (c->lba + c->lbas > LBAS) status = 0x080;
        else if (c->kind == 2 && p->owner->bad_read) status = 0x281;
        else if (c->kind == 0 && p->owner->bad_flush) status = 0x280;
        else if (c->kind == 2) memcpy(c->data, place, len);
        else if (c->kind == 1) memcpy(place, c->data, len);
        else if (c->kind == 9) memset(place, 0, len);
        answer(c, status);
    }
    return (int32_t)count;
}
