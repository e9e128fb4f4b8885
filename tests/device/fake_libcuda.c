/* libcuda.so.1 on the host: memory is malloc, a stream does everything at once, and a graph holds the
   one fill that was captured. The one kernel, "sum", takes (in, n, out, two addresses of scratch) and
   adds to n numbers what was launched. What cuda-python hands over is seen as C sees it.
   FAKE_CUINIT is what cuInit returns. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef uint64_t P;
typedef struct { size_t sx, sy; unsigned st; const void *sh; P sd; void *sa; size_t sp;
                 size_t dx, dy; unsigned dt; void *dh; P dd; void *da; size_t dp;
                 size_t width, height; } Copy2D;

static int capturing;
static P fill_at; static size_t fill_n; static unsigned char fill_value;

static R init(unsigned flags) { char *code = getenv("FAKE_CUINIT"); return code ? atoi(code) : 0; }
static R version(int *v) { *v = 13000; return 0; }
static R device(int *d, int ordinal) { *d = ordinal; return ordinal ? 101 : 0; }
static R retain(void **context, int d) { *context = (void *)0x77; return 0; }
static R release(int d) { return 0; }
static R current(void *context) { return context == (void *)0x77 ? 0 : 201; }
static R name(char *to, int n, int d) { snprintf(to, n, "Orin"); return 0; }
static R attribute(int *v, int which, int d) {
    *v = which == 75 ? 8 : which == 76 ? 7 : which == 16 ? 16 : -1; return 0; }
static R info(size_t *f, size_t *t) { *f = 3000000000u; *t = 4000000000u; return 0; }
static R take(P *p, size_t n) {
    if (n > 3000000000u) return 2;
    *p = (P)aligned_alloc(256, (n + 255) / 256 * 256); return 0; }
static R give(P p) { free((void *)p); return 0; }
static R take_host(void **p, size_t n) { *p = malloc(n); return 0; }
static R give_host(void *p) { free(p); return 0; }
static R stream(void **s, unsigned flags) { *s = (void *)0x51; return flags == 1 ? 0 : 1; }
static R on(void *s) { return s == (void *)0x51 ? 0 : 400; }
static R up(P to, const void *from, size_t n, void *s) { memcpy((void *)to, from, n); return on(s); }
static R down(void *to, P from, size_t n, void *s) { memcpy(to, (void *)from, n); return on(s); }
static R across(P to, P from, size_t n, void *s) { memcpy((void *)to, (void *)from, n); return on(s); }
static R copy2d(const Copy2D *c, void *s) {
    if (c->st != 2 || c->dt != 2 || c->width > c->sp || c->width > c->dp) return 1;
    for (size_t i = 0; i < c->height; i++)
        memcpy((char *)c->dd + i * c->dp, (char *)c->sd + i * c->sp, c->width);
    return on(s); }
static R fill(P to, unsigned char value, size_t n, void *s) {
    if (capturing) { fill_at = to; fill_n = n; fill_value = value; }
    else memset((void *)to, value, n);
    return on(s); }
static R begin(void *s, int mode) { capturing = 1; return mode == 1 ? on(s) : 1; }
static R end(void *s, void **g) { capturing = 0; *g = (void *)0x61; return on(s); }
static R instantiate(void **e, void *g, unsigned long long flags) {
    *e = (void *)0x62; return g == (void *)0x61 ? 0 : 400; }
static R drop_graph(void *g) { return g == (void *)0x61 ? 0 : 400; }
static R launch(void *e, void *s) {
    memset((void *)fill_at, fill_value, fill_n); return e == (void *)0x62 ? on(s) : 400; }
static R drop_exec(void *e) { return e == (void *)0x62 ? 0 : 400; }

static R load(void **module, const void *ptx) { *module = (void *)0x71; return strcmp(ptx, "ptx"); }
static R find(void **f, void *module, const char *name) {
    *f = (void *)0x72; return module != (void *)0x71 ? 400 : strcmp(name, "sum") ? 500 : 0; }
static R run(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
             unsigned shared, void *s, void **parameters, void **extra) {
    int *in = *(int **)parameters[0], n = *(int *)parameters[1], *out = *(int **)parameters[2];
    if (*(P *)parameters[3] || *(P *)parameters[4] || extra) return 1;
    for (int i = 0; i < n; i++)
        out[i] = in[i] + gx + 10 * gy + 100 * gz + 1000 * bx + 10000 * by + 100000 * bz + 1000000 * shared;
    return f == (void *)0x72 ? on(s) : 400; }

static struct { const char *name; void *function; } table[] = {
    {"cuInit", init}, {"cuDriverGetVersion", version}, {"cuDeviceGet", device},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuDevicePrimaryCtxRelease", release},
    {"cuCtxSetCurrent", current}, {"cuDeviceGetName", name}, {"cuDeviceGetAttribute", attribute},
    {"cuMemGetInfo", info}, {"cuMemAlloc", take}, {"cuMemFree", give},
    {"cuMemAllocHost", take_host}, {"cuMemFreeHost", give_host}, {"cuStreamCreate", stream},
    {"cuStreamDestroy", on}, {"cuStreamSynchronize", on}, {"cuMemcpyHtoDAsync", up},
    {"cuMemcpyDtoHAsync", down}, {"cuMemcpyDtoDAsync", across}, {"cuMemcpy2DAsync", copy2d},
    {"cuMemsetD8Async", fill}, {"cuStreamBeginCapture", begin}, {"cuStreamEndCapture", end},
    {"cuGraphInstantiate", instantiate}, {"cuGraphInstantiateWithFlags", instantiate},
    {"cuGraphDestroy", drop_graph}, {"cuGraphLaunch", launch}, {"cuGraphExecDestroy", drop_exec},
    {"cuModuleLoadData", load}, {"cuModuleGetFunction", find}, {"cuLaunchKernel", run},
};

R cuGetProcAddress_v2(const char *symbol, void **pfn, int v, uint64_t flags, int *status) {
    *pfn = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(symbol, table[i].name)) *pfn = table[i].function;
    if (status) *status = *pfn ? 0 : 1;
    return *pfn ? 0 : 500;
}
R cuGetProcAddress(const char *symbol, void **pfn, int v, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, pfn, v, flags, 0);
}
