// Hopper's products of matrices by warpgroups (wgmma), and what they need: barriers in shared memory, at which threads and copies
// arrive. For sm_90a, after instructions.cuh.

// ---- barriers in shared memory

// A phase of the barrier will end when so many have arrived.
INLINE void expect(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// After all were told what to expect: copies see it too. Then threads must meet.
INLINE void barriers_begin() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

INLINE void arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits for the end of a phase: they are numbered 0, 1, 0, 1 and so on; before the first one, number 1 has ended.
INLINE void await(unsigned barrier, int phase) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier),
        "r"(phase & 1)
        : "memory");
}

// Arrives, and lets `bytes` come from `from`: the phase ends when they are there.
INLINE void bring(unsigned to, const void* from, int bytes, unsigned barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}

// What this thread wrote to shared memory becomes visible to the tensor cores.
INLINE void show() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A warpgroup gives back registers until each of its threads has COUNT, or takes those that others gave.
template <int COUNT>
INLINE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
INLINE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- products

// Matrices of 8x8: `beside` bytes to the next one along the sum, `below` along rows or columns.
INLINE constexpr unsigned long long matrices(int beside, int below) {
    return (unsigned long long)(beside / 16) << 16 | (unsigned long long)(below / 16) << 32;
}

INLINE void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

INLINE void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most MOST committed groups are under way.
template <int MOST>
INLINE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(MOST) : "memory");
}

#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define SIXTY_FOUR                                                                                                      \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                            \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                  \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                  \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (64, 128) = a (64, 16) b (16, 128) + (keep ? d : 0), under way until waited for. Of every eight columns a thread has numbers
// 2 (lane % 4) and the next, of its warp's 16 rows numbers lane / 4 and 8 more.
INLINE void multiply64(float (&d)[64], unsigned long long a, unsigned long long b, int keep) {
    asm volatile(
        "{\n"
        ".reg .pred keep;\n"
        "setp.ne.b32 keep, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" SIXTY_FOUR "}, %64, %65, keep, 1, 1, 0, 0;\n"
        "}"
        : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
        : "l"(a), "l"(b), "r"(keep));
}

// The same with 136 columns.
INLINE void multiply64(float (&d)[68], unsigned long long a, unsigned long long b, int keep) {
    asm volatile(
        "{\n"
        ".reg .pred keep;\n"
        "setp.ne.b32 keep, %70, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n136k16.f32." TYPE "." TYPE " "
        "{" SIXTY_FOUR ", %64, %65, %66, %67}, %68, %69, keep, 1, 1, 0, 0;\n"
        "}"
        : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48), FOUR(64)
        : "l"(a), "l"(b), "r"(keep));
}
